"""What a query stream must not see has a gradient of exactly 0; what it may see has another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.errors import InputError
from pretrain.training import state

BACKENDS = pytest.mark.parametrize(
    "attention",
    [{}, {"attention": "rows"}, {"attention": "chunked", "attention_chunk": 4}],
    ids=["plain", "rows", "chunked"],
)


def influence(config, batch) -> np.ndarray:
    """bool [L, L]: whether the feature at a position depends on the embedding of the token at another."""
    params, graph = state.init_params(config, 0), state.graph(config)
    one = {name: value[:1] for name, value in batch.items()}
    length = one["encoder_input_tokens"].shape[1]
    weights = np.random.RandomState(1).randn(config.embed_dim)  # a plain sum is constant after some norms
    # Every position gets an embedding row of its own, so that its influence can be told apart.
    one["encoder_input_tokens"] = np.arange(length, dtype=np.int32)[None]

    def features(noise):
        table = params["embedding"]["table"].at[:length].add(noise)
        return nnx.merge(graph, {**params, "embedding": {"table": table}}).features(one)[0] @ weights

    jacobian = jax.jacrev(features)(jnp.zeros((length, config.embed_dim)))
    assert np.isfinite(jacobian).all()
    return np.asarray(jnp.abs(jacobian).sum(-1) > 0)


@BACKENDS
@pytest.mark.parametrize(
    "change",
    [{}, {"positions": "relative"}, {"norm": "layer", "norm_first": False, "gated": False, "biases": True}],
    ids=["rotary", "relative", "norm last"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_query_sees_context_and_lower_ranks_of_its_segment(
    packed, change, attention, tiny_config, token_batch
):
    """Not its own token, no equal or higher rank, no other segment; and so through all the layers."""
    batch = token_batch("two_stream", packed=packed)
    order, segment = batch["encoder_order"][0], batch["encoder_segment_ids"][0]
    seen = influence(tiny_config("two_stream", **change, **attention), batch)
    expected = (order[None, :] < order[:, None]) & (segment[None, :] == segment[:, None])
    np.testing.assert_array_equal(seen, expected)
    assert expected.any() and not expected[order == -1].any()


@BACKENDS
def test_in_reading_order_it_is_a_left_to_right_model(attention, tiny_config, token_batch):
    """Without context too: the first token is predicted of nothing, and of no mean of what is hidden."""
    batch = token_batch("two_stream")
    length = batch["encoder_order"].shape[1]
    batch["encoder_order"] = np.tile(np.arange(length, dtype=np.int32), (len(batch["encoder_order"]), 1))
    seen = influence(tiny_config("two_stream", **attention), batch)
    np.testing.assert_array_equal(seen, np.tril(np.ones((length, length), bool), -1))


def test_a_query_knows_its_own_position(tiny_config, token_batch):
    """Two tokens of one rank see the same; only where they stand sets their features apart."""
    batch = token_batch("two_stream")
    batch["encoder_order"] = np.full_like(batch["encoder_order"], -1)
    batch["encoder_order"][:, [3, 8]] = 0
    for positions in ("rotary", "relative"):
        config = tiny_config("two_stream", positions=positions)
        features = nnx.merge(state.graph(config), state.init_params(config, 0)).features(batch)
        assert np.abs(features[:, 3] - features[:, 8]).max(-1).min() > 1e-3


def test_flops_of_layers_are_those_xla_counts(tiny_config, token_batch):
    """Unrolled, so that XLA sees what of the last layer's content stream nobody needs."""
    config = tiny_config(
        "two_stream", embed_dim=128, head_dim=32, mlp_dim=256, vocab_size=512, num_layers=3, unroll=3
    )
    batch, graph = token_batch("two_stream"), state.graph(config)
    params = jax.eval_shape(lambda: state.init_params(config, 0))
    program = jax.jit(lambda params: nnx.merge(graph, params)(batch)).lower(params).compile()
    counted = program.cost_analysis()["flops"] / 8
    assert config.flops({"inputs": 24}) == pytest.approx(counted, rel=0.05)


def test_what_it_cannot_be_is_refused(tiny_config):
    with pytest.raises(InputError, match="positions='learned' come with the tokens"):
        tiny_config("two_stream", positions="learned")
    for attention in ("splash", "fused"):
        with pytest.raises(InputError, match=f"attention='{attention}' takes no order"):
            tiny_config("two_stream", attention=attention)
