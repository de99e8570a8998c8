"""Properties of the families: remat and meshes change nothing, the cache equals the full pass."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain import losses
from pretrain.data import rows
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state

FAMILIES = ["decoder", "encoder_decoder", "encoder", "bert", "two_stream"]
# Those whose layers are looped over in ways of their own: an encoder's are the encoder's of two.
STACKS = ["encoder_decoder", "two_stream"]
MESHES = [
    {"data": 8}, {"data": 1, "fsdp": 8}, {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2},
    {"context": 8}, {"replica": 2, "fsdp": 2, "context": 2},
]  # fmt: skip


def loss_and_gradients(config, batch, mesh_config=None, seed=0):
    rules = sharding.Rules()
    mesh = mesh_config and mesh_config.build()
    with sharding.layout(mesh, rules) if mesh else contextlib.nullcontext():
        graph = state.graph(config)

        def loss(params, batch, key):
            logits = nnx.merge(graph, params)(batch, key)
            sums = losses.token_cross_entropy(logits, *rows.scored(batch), z_loss=1e-4)
            return sums.loss / sums.weight

        params = jax.jit(lambda: state.init_params(config, seed))()
        if mesh:
            batch = jax.device_put(batch, sharding.named(mesh, rules, ("batch", "length")))
        key = jax.random.key(7) if config.dropout else None
        return jax.device_get((params, *jax.jit(jax.value_and_grad(loss))(params, batch, key)))


def layers_of(family: str, number: int) -> dict[str, int]:
    names = ("encoder_layers", "decoder_layers") if family == "encoder_decoder" else ("num_layers",)
    return dict.fromkeys(names, number)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_device_equals_eight(family, sizes, tiny_config, token_batch):
    config, batch = tiny_config(family, dropout=0.1), token_batch(family, packed=True)
    params, loss, gradients = loss_and_gradients(config, batch)
    params_8, loss_8, gradients_8 = loss_and_gradients(config, batch, MeshConfig(**sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, params_8)
    np.testing.assert_allclose(loss, loss_8, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, gradients_8)


@pytest.mark.parametrize(("unroll", "sizes"), [(2, None), (3, None), (8, None), (3, {"fsdp": 8})], ids=str)
@pytest.mark.parametrize("family", STACKS)
def test_unrolled_layers_change_nothing(family, unroll, sizes, tiny_config, token_batch):
    """Also where their number does not divide, or is above what there are; and they are not a loop then."""
    layers = layers_of(family, 4)
    config, batch = tiny_config(family, dropout=0.1, **layers), token_batch(family)
    unrolled = dataclasses.replace(config, unroll=unroll, remat="full" if sizes else "none")
    one = loss_and_gradients(config, batch)
    other = loss_and_gradients(unrolled, batch, sizes and MeshConfig(**sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)

    params = state.init_params(unrolled, 0)
    program = jax.jit(lambda params: nnx.merge(state.graph(unrolled), params)(batch)).lower(params).as_text()
    assert ("stablehlo.while" in program) == (unroll < 4)


@pytest.mark.parametrize(
    "sizes", [None, {"context": 8}, {"context": 2, "data": 2, "tensor": 2}, {"fsdp": 8}], ids=str
)
@pytest.mark.parametrize(
    "parts", [{"attention": "chunked", "attention_chunk": 8}, {"attention": "rows"}], ids=str
)
@pytest.mark.parametrize("family", STACKS)
def test_attention_in_parts_changes_nothing(family, parts, sizes, tiny_config, token_batch):
    batch = token_batch(family, packed=True)
    whole = loss_and_gradients(tiny_config(family), batch)
    parts = loss_and_gradients(
        tiny_config(family, remat="full", **parts), batch, sizes and MeshConfig(**sizes)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)


NAMED = {"remat": "names", "remat_keep": ("query", "up"), "remat_offload": ("mixed",)}


NAMED_IN_ROWS = {**NAMED, "attention": "rows", "dropout": 0.0}  # which draw other bits than `plain`


@pytest.mark.parametrize(
    "policy",
    [{"remat": "full"}, {"remat": "dots"}, NAMED, NAMED_IN_ROWS, {"remat": "full", "remat_layers": 1}],
    ids=["full", "dots", "names", "names in rows", "one layer"],
)
@pytest.mark.parametrize("family", STACKS)
def test_remat_equals_no_remat(family, policy, tiny_config, token_batch):
    batch = token_batch(family)
    kept = loss_and_gradients(tiny_config(family, dropout=policy.get("dropout", 0.1)), batch)
    again = loss_and_gradients(tiny_config(family, **{"dropout": 0.1, **policy}), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-7), kept, again)


EVERY_NAME = {"remat": "names", "remat_keep": ("query", "key", "value", "mixed", "out", "gate", "up")}


@pytest.fixture
def products(tiny_config, token_batch):
    """products(**config): the matrix products in the program of a decoder's gradient, a scan's body once."""

    def count(**fields) -> int:
        config, batch = tiny_config("decoder", **fields), token_batch("decoder")
        graph, params = state.graph(config), jax.eval_shape(lambda: state.init_params(config, 0))

        def loss(params):
            return jnp.sum(nnx.merge(graph, params)(batch))

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")

    return count


def test_remat_computes_again(products):
    """The policy reaches the program: without it nothing is marked for recomputation."""
    none, full, dots = (products(remat=remat) for remat in ("none", "full", "dots"))
    query, everything = products(remat="names", remat_keep=("query",)), products(**EVERY_NAME)
    # Of a block's 9 products 8 are needed again; those with weights are 6 of them, each has a name, and the
    # scores are needed for the gradient of the softmax whatever is kept.
    assert (full - none, dots - none, query - none, everything - none) == (8, 2, 7, 1)
    # Of two layers one does: two loops, a body of each kind. The logits and their gradients are there once.
    assert products(remat="full", remat_layers=1) == none + full - 3
    assert products(remat="full", remat_layers=9) == full


@pytest.mark.parametrize(
    "backend, mixes",
    [({"attention": "rows"}, 2), ({"attention": "chunked", "attention_chunk": 4}, 1)],
    ids=str,
)
def test_what_attention_mixed_is_not_computed_again_where_it_is_kept(backend, mixes, products):
    none, everything = products(**backend), products(**backend, **EVERY_NAME)
    without = products(**backend, remat="names", remat_keep=tuple(set(EVERY_NAME["remat_keep"]) - {"mixed"}))
    # Without it, the scores and the product with the values; once more the scores are computed by all three.
    assert (everything - none, without - none) == (0, 2 * mixes)


def test_dropout_needs_a_key_and_depends_on_it(tiny_config, token_batch):
    config, batch = tiny_config("encoder_decoder", dropout=0.3), token_batch("encoder_decoder")
    model = nnx.merge(state.graph(config), state.init_params(config, 0))
    plain = model(batch)
    np.testing.assert_array_equal(plain, model(batch))
    one, two = model(batch, jax.random.key(1)), model(batch, jax.random.key(2))
    np.testing.assert_array_equal(one, model(batch, jax.random.key(1)))
    assert not np.allclose(one, two) and not np.allclose(one, plain)


@pytest.mark.parametrize("unroll", [1, 2, 8])
def test_decoder_cache_equals_the_full_pass(unroll, tiny_config, token_batch):
    config = dataclasses.replace(tiny_config("decoder"), unroll=unroll)
    batch = token_batch("decoder")
    model = nnx.merge(state.graph(config), state.init_params(config, 0))
    full = model(batch)
    tokens = batch["decoder_input_tokens"]
    B, L = tokens.shape
    cache = model.empty_cache(B, L)
    slots = jnp.arange(L)
    for start, length in ((0, 5), (5, 1), (6, 1), (7, 9)):
        positions = jnp.broadcast_to(start + jnp.arange(length), (B, length))
        seen = jnp.broadcast_to(slots[None, None, :] <= positions[:, :, None], (B, length, L))
        logits, cache = model.extend(tokens[:, start : start + length], cache, start, seen, positions)
        np.testing.assert_allclose(logits, full[:, start : start + length], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("unroll", [1, 2, 8])
def test_encoder_decoder_cache_equals_the_full_pass(unroll, tiny_config, token_batch):
    config, batch = (
        dataclasses.replace(tiny_config("encoder_decoder"), unroll=unroll),
        token_batch("encoder_decoder"),
    )
    batch["encoder_segment_ids"][:, 20:] = 0  # padding that nothing may see
    model = nnx.merge(state.graph(config), state.init_params(config, 0))
    full = model(batch)
    encoded, tokens = model.encode(batch), batch["decoder_input_tokens"]
    cache = model.empty_cache(*tokens.shape)
    for t in range(tokens.shape[1]):
        logits, cache = model.extend(tokens[:, t : t + 1], encoded, batch["encoder_segment_ids"], cache, t)
        np.testing.assert_allclose(logits[:, 0], full[:, t], rtol=2e-5, atol=2e-5)


def test_bfloat16_computes_low_and_keeps_float32_parameters(tiny_config, token_batch):
    for family in FAMILIES:
        config = tiny_config(family, dtype="bfloat16")
        params = state.init_params(config, 0)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        low = nnx.merge(state.graph(config), params)(token_batch(family))
        high = nnx.merge(state.graph(tiny_config(family)), params)(token_batch(family))
        assert low.dtype == jnp.float32
        assert 1e-4 < np.abs(low - high).max() < 0.3


def test_grouped_heads_equal_repeated_ones(tiny_config, token_batch):
    """2 key heads for 4 query heads is 4 key heads of which pairs are equal."""
    batch = token_batch("decoder")
    grouped, plain = tiny_config("decoder", num_kv_heads=2), tiny_config("decoder", num_kv_heads=4)
    params = state.init_params(grouped, 0)

    def repeat(weight):
        layers, dim, _ = weight.shape
        return jnp.repeat(weight.reshape(layers, dim, 2, 8), 2, axis=2).reshape(layers, dim, 32)

    wide = jax.tree.map(lambda x: x, params)
    attention = wide["stack"]["layers"]["attention"]
    attention["key"], attention["value"] = repeat(attention["key"]), repeat(attention["value"])
    np.testing.assert_allclose(
        nnx.merge(state.graph(grouped), params)(batch), nnx.merge(state.graph(plain), wide)(batch), atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_xla_counts(family, tiny_config, token_batch):
    """One layer a stack, so that the scan's body, which XLA counts once, is all there is."""
    layers = layers_of(family, 1)
    # Products alone are counted; BERT's GELU would be a twentieth of so small a model.
    plain = {"activation": "relu"} if family == "bert" else {}
    config = tiny_config(family, embed_dim=128, head_dim=32, mlp_dim=256, vocab_size=512, **layers, **plain)
    batch, graph = token_batch(family), state.graph(config)
    params = jax.eval_shape(lambda: state.init_params(config, 0))
    program = jax.jit(lambda p: nnx.merge(graph, p)(batch)).lower(params).compile()
    counted = program.cost_analysis()["flops"] / 8
    assert config.flops({"inputs": 24, "targets": 16}) == pytest.approx(counted, rel=0.05)


def test_what_a_model_cannot_be_is_refused(tiny_config):
    with pytest.raises(InputError, match="remat='some' is not one of none, full, dots, names"):
        tiny_config("decoder", remat="some")
    with pytest.raises(
        InputError, match="has names that are none of query, key, value, mixed, out, gate, up"
    ):
        tiny_config("decoder", remat="names", remat_keep=("querry",))
    with pytest.raises(InputError, match="names go with remat='names', and it needs some"):
        tiny_config("decoder", remat="names")
    with pytest.raises(InputError, match="names go with remat='names'"):
        tiny_config("decoder", remat_offload=("query",))
    with pytest.raises(InputError, match="remat_layers=1 goes with a remat other than 'none'"):
        tiny_config("decoder", remat_layers=1)
    with pytest.raises(InputError, match="dtype='float31' is not one of float32, bfloat16"):
        tiny_config("encoder_decoder", dtype="float31")
    with pytest.raises(InputError, match="num_heads=0 must be at least 1"):
        tiny_config("decoder", num_heads=0)
    with pytest.raises(InputError, match="num_heads=4 is not a multiple of num_kv_heads=3"):
        tiny_config("decoder", num_kv_heads=3)
    with pytest.raises(InputError, match="max_positions=None with positions='learned': give it with"):
        tiny_config("encoder", positions="learned")
    with pytest.raises(InputError, match="max_positions=24 with positions='rotary'"):
        tiny_config("bert", positions="rotary")


def test_rows_longer_than_the_learned_positions_are_refused(tiny_config, token_batch):
    config = tiny_config("bert", max_positions=23)
    with pytest.raises(InputError, match="Rows of 24 tokens are longer than max_positions=23"):
        nnx.merge(state.graph(config), state.init_params(config, 0))(token_batch("bert"))


@pytest.mark.parametrize("family", ["encoder", "bert"])
def test_an_encoder_sees_its_segment_and_no_other(family, tiny_config, token_batch):
    """Where a token is changed, the features of its segment change, and of no other."""
    batch = token_batch(family, packed=True)
    model = nnx.merge(state.graph(tiny_config(family)), state.init_params(tiny_config(family), 0))
    before, segments = model.features(batch), batch["encoder_segment_ids"][0]
    for at in (0, 9, 10, 20, 22):
        changed = dict(batch, encoder_input_tokens=batch["encoder_input_tokens"].copy())
        changed["encoder_input_tokens"][:, at] = (changed["encoder_input_tokens"][:, at] + 7) % 64
        moved = np.abs(model.features(changed) - before).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, segments == segments[at])
