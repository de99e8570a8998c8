"""All ways to attend give the same, see the same, and refuse what they cannot do."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import hlo
from pretrain.errors import InputError
from pretrain.models import backends, recomputed
from pretrain.models.masks import Bias, Mask
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.parallel.topologies import Topology

B, N, M, H = 2, 4, 2, 8


def arrays(length: int, heads=(N, M), head_dim=H, batch=B, seed=0):
    rng = np.random.RandomState(seed)
    sizes = ((batch, length, heads[0], head_dim), (batch, length, heads[1], head_dim))
    query, key, value = (rng.randn(*sizes[at]).astype(np.float32) for at in (0, 1, 1))
    return query * head_dim**-0.5, key, value


def segments(length: int, batch=B) -> np.ndarray:
    """Two documents and some padding, elsewhere in each row."""
    rows = [[length // 2 - row, length // 4 + row] for row in range(batch)]
    ids = [np.pad(np.repeat([1, 2], row), (0, length - sum(row))) for row in rows]
    return np.stack(ids).astype(np.int32)


def masks(length: int) -> dict[str, Mask]:
    ids = segments(length)
    prefix = np.zeros_like(ids)
    prefix[:, :3] = 1
    return {
        "segments": Mask.of(ids),
        "causal": Mask.of(ids, causal=True),
        "prefix": Mask.of(ids, causal=True, prefix_BK=jnp.asarray(prefix)),
    }


def bias(length: int) -> Bias:
    table = jnp.asarray(np.random.RandomState(1).randn(8, N), jnp.float32)
    at = jnp.arange(length)
    return Bias(table=table, query_positions=at, key_positions=at, bidirectional=True, max_distance=16)


CHUNKED = functools.partial(backends.chunked, size=4)
# cuDNN is not here: the same call by XLA shows that mask, bias and heads arrive as they must.
FUSED = functools.partial(backends.cudnn, implementation="xla")
SPLASH = functools.partial(backends.splash, interpret=True)
KERNEL = functools.partial(backends.fused, interpret=True)
OURS = {"rows": backends.rows, "chunked": CHUNKED, "fused": KERNEL}


def both(backend, inputs, seen, offset=None):
    """What a backend gives, and the gradient of a sum of it that weighs every element differently."""
    weights = jnp.asarray(np.random.RandomState(2).randn(*inputs[0].shape), jnp.float32)

    def total(inputs, offset):
        mixed = backend(*inputs, seen, offset)
        real = (seen.query_segments > 0)[:, :, None, None]
        return jnp.sum(jnp.where(real, mixed * weights, 0)), jnp.where(real, mixed, 0)

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True, allow_int=True))(inputs, offset)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["segments", "causal", "prefix"])
@pytest.mark.parametrize("backend", [*OURS.values(), FUSED], ids=[*OURS, "cudnn"])
def test_values_and_gradients_are_those_of_plain(backend, kind, with_bias):
    inputs, seen = arrays(24), masks(24)[kind]
    offset = bias(24) if with_bias else None
    assert_same(both(backend, inputs, seen, offset), both(backends.plain, inputs, seen, offset))


def ordered(strict: bool) -> Mask:
    """A random order of each row, in which six tokens are context."""
    order = np.random.RandomState(3).rand(B, 24).argsort(1) - 6
    return Mask.of(segments(24), order_BL=jnp.asarray(np.maximum(order, -1), jnp.int32), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("backend", [backends.rows, CHUNKED, FUSED], ids=["rows", "chunked", "cudnn"])
def test_an_order_is_seen_as_by_plain(backend, strict):
    """Also by queries that see nothing, as those of context: they get 0."""
    inputs, seen, offset = arrays(24), ordered(strict), bias(24)
    assert_same(both(backend, inputs, seen, offset), both(backends.plain, inputs, seen, offset))
    blind = ~np.asarray(seen.written_out()).any(-1)
    assert blind.any() == strict
    assert not np.asarray(backend(*inputs, seen, offset))[blind].any()


@pytest.mark.parametrize("backend", [KERNEL, SPLASH], ids=["fused", "splash"])
def test_an_order_is_refused_by_kernels_that_know_none(backend):
    with pytest.raises(InputError, match="takes no mask but segments"):
        backend(*arrays(128, head_dim=128), dataclasses.replace(ordered(True), causal=True), None)


@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 64), ((4, 2), 128), ((3, 3), 64), ((3, 1), 64)])
def test_our_kernel_takes_as_many_heads_as_fill_its_lanes(heads, head_dim):
    """Two at a turn, or one; one of zeros beside three. The small ones of the other tests go all at once."""
    inputs, seen, offset = arrays(24, heads, head_dim), masks(24)["prefix"], bias(24)
    offset = dataclasses.replace(offset, table=offset.table[:, : heads[0]])
    assert_same(both(KERNEL, inputs, seen, offset), both(backends.plain, inputs, seen, offset))


def test_our_kernel_adds_up_the_gradients_of_a_shared_key_in_float32():
    """In bfloat16 each sum of 32 would be rounded 31 times."""
    inputs, seen = arrays(24, (32, 1), 8), masks(24)["segments"]
    _, of_keys, of_value = jax.tree.leaves(both(KERNEL, inputs, seen)[0])[:3]
    low = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs)
    _, low_keys, low_value = jax.tree.leaves(both(KERNEL, low, seen)[0])[:3]
    for exact, found in ((of_keys, low_keys), (of_value, low_value)):
        error = np.abs(np.asarray(found, np.float32) - exact)
        assert error.mean() < 3 * 2**-9 * np.abs(exact).mean()


def test_halves_of_a_row_drop_what_they_should():
    """As many weights as `dropout` says, in each: the mean over draws is what no dropout gives."""
    inputs, seen = arrays(24), masks(24)["causal"]
    keys = jax.random.split(jax.random.key(0), 128)
    drawn = jax.vmap(lambda key: backends.rows(*inputs, seen, None, dropout=0.3, key=key))(keys)
    whole = backends.rows(*inputs, seen, None)
    real = np.asarray(seen.query_segments) > 0
    error = (np.mean(drawn, axis=0) - whole)[real]
    assert np.abs(error).max() < 6 * np.std(drawn, axis=0)[real].max() / 128**0.5


MESHES = [
    ("rows", {"data": 2}),
    *((name, {"data": 2, "context": 2}) for name in ("rows", "chunked")),
    ("fused", {"data": 2}),
]


@pytest.mark.parametrize(
    ("name", "sizes", "heads"),
    [
        *((*mesh, heads) for mesh in MESHES for heads in ((N, M), (1, 1), (N, 1))),
        *((name, {"data": 2, "tensor": 2}, (N, M)) for name in OURS),
    ],
    ids=str,
)
def test_gradients_on_a_mesh_are_those_of_plain(name, sizes, heads):
    """That of the bias too, which is added up over rows and devices."""
    backend, inputs, ids = OURS[name], arrays(24, heads), segments(24)
    table = bias(24).table[:, : heads[0]]
    weights = jnp.asarray(np.random.RandomState(2).randn(*inputs[0].shape), jnp.float32)

    def total(backend):
        def of(inputs, table, ids, weights):
            real = (ids > 0)[:, :, None, None]
            mixed = backend(*inputs, Mask.of(ids, causal=True), offset_of(table))
            return jnp.sum(jnp.where(real, mixed * weights, 0))

        return jax.jit(jax.grad(of, argnums=(0, 1)))

    alone = total(backends.plain)(inputs, table, ids, weights)
    axes = ("batch", "length", "heads", None)
    mesh = MeshConfig(**sizes).build(jax.devices()[: math.prod(sizes.values())])
    with sharding.layout(mesh, sharding.Rules()):
        query, *others = (sharding.constrain(jnp.asarray(x), axes) for x in (*inputs, weights))
        keys = (sharding.constrain(x, ("batch", None, "heads", None)) for x in others[:2])
        rows = sharding.constrain(jnp.asarray(ids), ("batch", "length"))
        across = total(backend)((query, *keys), sharding.constrain(table, (None, "heads")), rows, others[2])
    assert_same(across, alone)


def test_bfloat16_is_rounded_once():
    """Nearer to float32 than `plain`, whose weights are rounded after they are normed."""
    low, seen = [jnp.asarray(x, jnp.bfloat16) for x in arrays(24)], masks(24)["segments"]
    exact = backends.plain(*(x.astype(jnp.float32) for x in low), seen, None)
    real = np.asarray(seen.query_segments) > 0

    def error(backend):
        return np.abs(np.asarray(backend(*low, seen, None), np.float32) - exact)[real].mean()

    assert error(backends.rows) < error(backends.plain)


def test_dropout_has_the_gradient_of_what_was_dropped():
    inputs, seen, offset, key = arrays(24), masks(24)["prefix"], bias(24), jax.random.key(3)

    def of_mix(query, keys, value, seen, offset):
        return recomputed.mix(query, keys, value, seen, offset, key, 0.4)

    plain = functools.partial(backends.plain, dropout=0.4, key=key)
    assert_same(both(of_mix, inputs, seen, offset), both(plain, inputs, seen, offset))


@pytest.mark.parametrize("backend", [backends.plain, *OURS.values()], ids=["plain", *OURS])
def test_a_query_that_sees_nothing_gives_nothing_to_what_it_does_not_see(backend):
    """Padding of a decoder, over an encoder's row that has none."""
    inputs, ids = arrays(24), segments(24)
    seen = Mask.of(ids, jnp.ones_like(ids))

    def mixed(*inputs):
        return backend(*inputs, seen, None)[:, -1]

    assert (ids[:, -1] == 0).all() and not mixed(*inputs).any()
    gradients = jax.grad(lambda *inputs: jnp.sum(mixed(*inputs)), argnums=(0, 1, 2))(*inputs)
    assert not any(gradient.any() for gradient in gradients)


def test_the_scores_are_not_kept_for_the_backward_pass():
    inputs, seen, offset = arrays(24), masks(24)["prefix"], bias(24)
    _, kept = recomputed._forward(*inputs, seen, offset, None, 0.0)
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) == inputs[0].size


@pytest.mark.parametrize("kind", ["segments", "causal"])
def test_the_tpu_kernel_gives_what_plain_gives(kind):
    inputs = arrays(256, head_dim=128)
    seen = masks(256)[kind]
    assert_same(both(SPLASH, inputs, seen), both(backends.plain, inputs, seen))


@pytest.mark.parametrize("name", ["plain", *OURS, "cudnn", "splash"])
def test_no_backend_lets_a_gradient_through_that_must_not_be(name):
    """Exactly zero, for the keys and values that a query must not see."""
    backend = {"plain": backends.plain, **OURS, "cudnn": FUSED, "splash": SPLASH}[name]
    length = 256 if name == "splash" else 24
    inputs = arrays(length, head_dim=128 if name == "splash" else H)
    seen = masks(length)["causal"]
    written = np.asarray(seen.written_out())
    for at in (1, length // 2 + 1):  # of the first and the second document

        def mixed(key, value, at=at):
            return jnp.sum(backend(inputs[0], key, value, seen, None)[:, at])

        for gradient in jax.grad(mixed, argnums=(0, 1))(*inputs[1:]):
            reached = np.abs(np.asarray(gradient)).sum((2, 3)) > 0
            assert not (reached & ~written[:, at]).any()
            assert reached.any()


@pytest.mark.parametrize(
    "backend",
    [backends.plain, backends.rows, CHUNKED, FUSED, KERNEL],
    ids=["plain", "rows", "chunked", "cudnn", "fused"],
)
@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2}, {"data": 1, "context": 2, "tensor": 2}])
def test_a_mesh_changes_nothing(backend, axes):
    if backend is KERNEL:
        axes = {**axes, "context": 1, "data": 2}
    inputs, seen, offset = arrays(24), masks(24)["prefix"], bias(24)
    alone = backend(*inputs, seen, offset)
    config = MeshConfig(**axes)
    mesh = config.build(jax.devices()[:4])
    with sharding.layout(mesh, sharding.Rules()):
        placed = [sharding.constrain(jnp.asarray(x), ("batch", "length", "heads", None)) for x in inputs]
        rows = [sharding.constrain(jnp.asarray(segments(24)), ("batch", "length"))]
        prefix = sharding.constrain(jnp.asarray(masks(24)["prefix"].prefix), ("batch", "length"))
        across = jax.jit(
            lambda q, k, v, ids, prefix, table: backend(
                q, k, v, Mask.of(ids, causal=True, prefix_BK=prefix), offset_of(table)
            )
        )(*placed, *rows, prefix, offset.table)
    real = np.asarray(segments(24) > 0)
    np.testing.assert_allclose(np.asarray(across)[real], np.asarray(alone)[real], atol=2e-5)


def offset_of(table) -> Bias:
    at = jnp.arange(24)
    return Bias(table=table, query_positions=at, key_positions=at, bidirectional=True, max_distance=16)


def test_the_memory_of_chunks_is_linear_in_the_length():
    def temporaries(backend, length):
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays(length, batch=1)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(q, k, v, ids):
            return jnp.sum(backend(q, k, v, Mask.of(ids, causal=True), None))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunks = functools.partial(backends.chunked, size=64)
    assert temporaries(backends.plain, 2048) > 3 * temporaries(backends.plain, 1024)
    assert temporaries(chunks, 2048) < 2.5 * temporaries(chunks, 1024)
    assert temporaries(chunks, 2048) < temporaries(backends.plain, 2048) / 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offset": True}, "takes no position bias"),
        ({"kind": "prefix"}, "takes no prefix"),
        ({"dropout": 0.1}, "takes no dropout"),
        ({"head_dim": 64}, "takes no head_dim of 64"),
        ({"length": 200}, "takes no lengths of 200 and 200"),
    ],
)
def test_what_the_tpu_kernel_cannot_do_it_refuses(change, said):
    given = {"length": 256, "kind": "causal", "offset": False, "dropout": 0.0, "head_dim": 128, **change}
    length = given["length"]
    offset = bias(length) if given["offset"] else None
    with pytest.raises(InputError, match=f"attention='splash' {said}.*: use attention='chunked'"):
        backends.splash(
            *arrays(length, head_dim=given["head_dim"]), masks(length)[given["kind"]], offset,
            dropout=given["dropout"], key=jax.random.key(0),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "only"), [(backends.splash, "TPU"), (backends.fused, "TPU"), (backends.cudnn, "GPU")]
)
def test_a_kernel_is_refused_where_it_cannot_run(backend, only):
    message = f"attention='{backend.__name__}' takes no devices but {only}s, and these are CPUs: use"
    with pytest.raises(InputError, match=message):
        backend(*arrays(128, head_dim=128), masks(128)["causal"], None)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        (
            "decoder",
            {"attention": "flash"},
            "attention='flash' is not one of plain, rows, chunked, cudnn, splash, fused",
        ),
        ("decoder", {"attention": "splash", "dropout": 0.1}, "'splash' has no dropout, but dropout=0.1"),
        ("decoder", {"attention": "cudnn"}, "'cudnn' needs dtype='bfloat16', not 'float32'"),
        ("encoder_decoder", {"attention": "splash"}, "'splash' takes no position bias, and T5 has one"),
        ("decoder", {"attention_chunk": 0}, "attention_chunk=0 must be at least 1"),
    ],
)
def test_a_model_that_its_backend_cannot_serve_is_refused(family, change, said, tiny_config):
    with pytest.raises(InputError, match=said):
        tiny_config(family, **change)


def test_the_tpu_kernel_compiles_for_a_slice(tpu_compiler):
    """With batch and heads cut, and its backward pass, by the compiler of the TPU itself.

    Where its result is kept, the backward pass does not run the kernel of the forward pass again.
    """
    mesh, rules = MeshConfig(data=2, tensor=2).build(Topology("v5e:2x2").devices()), sharding.Rules()

    def shape(sizes, dtype, axes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(mesh, rules, axes))

    def kernels(*kept):
        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*kept))
        def loss(query, key, value, ids):
            mixed = backends.splash(query, key, value, Mask.of(ids, causal=True), None)
            return jnp.sum(jnp.sin(mixed.astype(jnp.float32)))

        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(query, key, key, ids)
        return program.compile().as_text().count('custom_call_target="tpu_custom_call"')

    axes = ("batch", "length", "heads", None)
    query, key = (shape((4, 256, heads, 128), jnp.bfloat16, axes) for heads in (4, 2))
    ids = shape((4, 256), jnp.int32, ("batch", "length"))
    with sharding.layout(mesh, rules):
        assert (kernels(), kernels("mixed")) == (4, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dropout": 0.1, "key": jax.random.key(0)}, "no dropout"),
        (
            {"length": 400},
            "no lengths of 400 and 400, whose product is above the 131072 for 4 heads of 8 at a time",
        ),
        ({"written": True}, "no mask but segments, causal and prefix"),
    ],
)
def test_what_our_kernel_cannot_do_it_refuses(change, said):
    length = change.pop("length", 24)
    seen = masks(length)["causal"]
    seen = seen.written_out() if change.pop("written", False) else seen
    with pytest.raises(InputError, match=f"attention='fused' takes {said}: use attention='chunked'"):
        KERNEL(*arrays(length), seen, None, **change)


def test_our_kernel_compiles_for_a_slice(tpu_compiler):
    """Rows of T5, whose 114 targets no tile divides, batch and heads cut, with its backward pass."""
    mesh, rules = MeshConfig(data=2, tensor=2).build(Topology("v5e:2x2").devices()), sharding.Rules()

    def shape(sizes, dtype, axes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(mesh, rules, axes))

    def loss(query, key, value, ids, table):
        at = jnp.arange(114)
        offset = Bias(table=table, query_positions=at, key_positions=at, bidirectional=False, max_distance=64)
        mixed = backends.fused(query, key, value, Mask.of(ids, causal=True, prefix_BK=ids), offset)
        return jnp.sum(jnp.sin(mixed.astype(jnp.float32)))

    axes = ("batch", "length", "heads", None)
    query, key = (shape((4, 114, heads, 64), jnp.bfloat16, axes) for heads in (4, 2))
    ids, table = shape((4, 114), jnp.int32, ("batch", "length")), shape((8, 4), jnp.float32, (None, "heads"))
    with sharding.layout(mesh, rules):
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 4))).lower(query, key, key, ids, table)
        text = program.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    # Of a device, with half of the rows and of the heads: two products, and the five of the backward pass.
    product, query, bias_bytes = 2 * 2 * 2 * 114 * 114 * 64, 2 * 2 * 114 * 64 * 2, 2 * 114 * 114 * 4
    found = sorted(hlo.cost(text, 4).kernels)
    assert [(times, flops) for times, flops, _ in found] == [(1, 2 * product), (1, 5 * product)]
    # The gradients of the two key heads are in float32 until they are added up.
    arrays_and_ids = [4 * query + bias_bytes, 9 * query + 2 * bias_bytes]
    assert [read for _, _, read in found] == [least + 3 * 2 * 114 * 4 for least in arrays_and_ids]


def test_the_longest_rows_that_our_kernel_takes_fit_a_core(tpu_compiler):
    """In float32, three heads on a device: a turn has two, with their biases and the gradients of those."""
    mesh, rules = MeshConfig(data=2, tensor=2).build(Topology("v5e:2x2").devices()), sharding.Rules()

    def shape(sizes, dtype, axes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(mesh, rules, axes))

    def loss(heads, ids, bias_NQK):
        return jnp.sum(backends.fused(heads, heads, heads, Mask.of(ids), bias_NQK))

    heads = shape((2, 512, 6, 64), jnp.float32, ("batch", "length", "heads", None))
    bias_NQK = shape((6, 512, 512), jnp.float32, ("heads", None, None))
    ids = shape((2, 512), jnp.int32, ("batch", "length"))
    with sharding.layout(mesh, rules):
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 2))).lower(heads, ids, bias_NQK).compile()
    assert [times for times, _, _ in hlo.cost(program.as_text(), 4).kernels] == [1, 1]
