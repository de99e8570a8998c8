"""What a position must not see has a gradient of exactly 0, for every family, packed or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.training import state


def influence(config, batch, feature: str) -> np.ndarray:
    """bool [L, M]: whether the logits of target position l depend on position m of `feature`.

    Summed over the batch's first row; exact: a zero is a gradient that is 0, not one that is small.
    """
    params = state.init_params(config, 0)
    graph = state.graph(config)
    width = batch[feature].shape[1]

    def logits(noise):
        # Every position gets an embedding row of its own, so that its influence can be told apart.
        own = dict(batch)
        own[feature] = jnp.tile(jnp.arange(width), (batch[feature].shape[0], 1))
        table = params["embedding"]["table"]
        model = nnx.merge(graph, {**params, "embedding": {"table": table.at[:width].add(noise)}})
        others = [n for n in batch if n.endswith("input_tokens") and n != feature]
        for name in others:
            own[name] = jnp.full_like(batch[name], width)
        return model({name: value[:1] for name, value in own.items()})[0].sum(-1)

    jacobian = jax.jacrev(logits)(jnp.zeros((width, config.embed_dim)))
    return np.asarray(jnp.abs(jacobian).sum(-1) > 0)


BACKENDS = pytest.mark.parametrize(
    "attention",
    [{}, {"attention": "rows"}, {"attention": "chunked", "attention_chunk": 4}],
    ids=["plain", "rows", "chunked"],
)


@BACKENDS
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_decoder_sees_its_segment_up_to_itself(family, packed, attention, tiny_config, token_batch):
    batch = token_batch(family, packed=packed)
    segment = batch["decoder_segment_ids"][0]
    seen = influence(tiny_config(family, **attention), batch, "decoder_input_tokens")
    causal = np.tril(np.ones((len(segment), len(segment)), bool))
    expected = causal & (segment[:, None] == segment[None, :])
    real = segment > 0
    assert (seen[real] == expected[real]).all()


@BACKENDS
@pytest.mark.parametrize("packed", [False, True])
def test_decoder_sees_all_of_its_own_input_and_no_other(packed, attention, tiny_config, token_batch):
    batch = token_batch("encoder_decoder", packed=packed)
    seen = influence(tiny_config("encoder_decoder", **attention), batch, "encoder_input_tokens")
    decoder, encoder = batch["decoder_segment_ids"][0], batch["encoder_segment_ids"][0]
    real = decoder > 0
    assert (seen[real] == (decoder[:, None] == encoder[None, :])[real]).all()


@BACKENDS
def test_prefix_is_seen_whole_and_nothing_else_is(attention, tiny_config, token_batch):
    batch = token_batch("decoder", packed=True)
    prefix = np.zeros_like(batch["decoder_segment_ids"])
    prefix[:, :3] = 1  # the first segment is positions 0..6, the second 7..12
    prefix[:, 7:9] = 1
    batch["decoder_prefix_mask"] = prefix
    seen = influence(tiny_config("decoder", **attention), batch, "decoder_input_tokens")
    segment = batch["decoder_segment_ids"][0]
    causal = np.tril(np.ones((len(segment), len(segment)), bool)) | (prefix[0] > 0)[None, :]
    expected = causal & (segment[:, None] == segment[None, :])
    real = segment > 0
    assert (seen[real] == expected[real]).all()
    assert seen[0, 2] and not seen[0, 3] and not seen[8, 2] and not seen[3, 8]
