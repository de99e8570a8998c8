"""Our T5 1.1 against T5X's own network, with its parameters: tests/golden/t5x_tiny.npz.

The file holds the parameters of a T5X checkpoint (2 + 2 layers, untied logits, unscanned) and the float32
logits T5X's code gave for them, on padded and on packed rows.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.training import state

CONFIG = EncoderDecoderConfig(
    vocab_size=384, embed_dim=64, encoder_layers=2, decoder_layers=2, num_heads=4, head_dim=16, mlp_dim=128
)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "t5x_tiny.npz") as data:
        return dict(data)


def attention(at, name):
    return {part: at(f"{name}/{part}/kernel") for part in ("query", "key", "value", "out")}


def stack(golden, side: str) -> dict:
    def at(path: str) -> np.ndarray:
        return np.stack([golden[f"params/{side}/layers_{i}/{path}"] for i in range(2)])

    encodes = side == "encoder"
    norm = "pre_attention_layer_norm" if encodes else "pre_self_attention_layer_norm"
    layers = {
        "attention_norm": {"scale": at(f"{norm}/scale")},
        "attention": attention(at, "attention" if encodes else "self_attention"),
        "mlp_norm": {"scale": at("pre_mlp_layer_norm/scale")},
        "mlp": {"gate": at("mlp/wi_0/kernel"), "up": at("mlp/wi_1/kernel"), "down": at("mlp/wo/kernel")},
    }
    if not encodes:
        layers["cross_norm"] = {"scale": at("pre_cross_attention_layer_norm/scale")}
        layers["cross_attention"] = attention(at, "encoder_decoder_attention")
    return {
        "layers": layers,
        "relative_bias": {"table": golden[f"params/{side}/relpos_bias/rel_embedding"].T},
        "final_norm": {"scale": golden[f"params/{side}/{side}_norm/scale"]},
    }


@pytest.fixture(scope="module")
def model(golden):
    params = {
        "embedding": {"table": golden["params/token_embedder/embedding"]},
        "encoder": stack(golden, "encoder"),
        "decoder": stack(golden, "decoder"),
        "unembedding": {"kernel": golden["params/decoder/logits_dense/kernel"]},
    }
    fresh = jax.eval_shape(lambda: state.init_params(CONFIG, 0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    return nnx.merge(state.graph(CONFIG), jax.tree.map(jnp.asarray, params))


def test_logits_equal_t5x(golden, model):
    encoder, decoder = golden["encoder_input_tokens"], golden["decoder_input_tokens"]
    real = golden["decoder_target_tokens"] > 0
    logits = model(
        {
            "encoder_input_tokens": encoder,
            "encoder_segment_ids": (encoder > 0).astype(np.int32),
            "encoder_positions": np.broadcast_to(np.arange(encoder.shape[1]), encoder.shape),
            "decoder_input_tokens": decoder,
            "decoder_segment_ids": real.astype(np.int32),
            "decoder_positions": np.broadcast_to(np.arange(decoder.shape[1]), decoder.shape),
        }
    )
    np.testing.assert_allclose(logits[real], golden["logits"][real], atol=2e-5, rtol=2e-5)


def test_packed_logits_equal_t5x(golden, model):
    names = ("encoder_segment_ids", "encoder_positions", "decoder_segment_ids", "decoder_positions")
    logits = model(
        {
            "encoder_input_tokens": golden["encoder_input_tokens"],
            "decoder_input_tokens": golden["packed_decoder_input_tokens"],
            **{name: golden[name] for name in names},
        }
    )
    real = golden["decoder_segment_ids"] > 0
    np.testing.assert_allclose(logits[real], golden["packed_logits"][real], atol=2e-5, rtol=2e-5)
