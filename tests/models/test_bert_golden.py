"""Our encoder as BERT against `transformers`' BertForMaskedLM: tests/golden/bert_tiny.npz.

scripts/goldens/bert.py made the file. BERT adds an embedding of the sentence a token is in, of which there is
one here: it is added to the positions'.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.models.encoder import EncoderConfig
from pretrain.objectives import MaskedLM
from pretrain.training import state

CONFIG = EncoderConfig(
    vocab_size=64, embed_dim=32, num_layers=2, num_heads=4, head_dim=8, mlp_dim=48, activation="exact_gelu",
    norm="layer", norm_first=False, gated=False, biases=True, positions="learned", max_positions=20,
    norm_epsilon=1e-12,
)  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "bert_tiny.npz") as data:
        return dict(data)


def norm(at, name):
    return {"scale": at(f"{name}.LayerNorm.weight"), "shift": at(f"{name}.LayerNorm.bias")}


def tree(golden, kind: str) -> dict:
    """The arrays that begin with `kind`, "params" or "gradients", as our parameters."""

    def one(name):
        return golden[f"{kind}/{name}"]

    def at(name):
        found = np.stack([one(f"bert.encoder.layer.{i}.{name}") for i in range(2)])
        return found.swapaxes(1, 2) if found.ndim == 3 else found  # torch has [out, in]

    parts = {"query": "attention.self.query", "key": "attention.self.key",
             "value": "attention.self.value", "out": "attention.output.dense"}  # fmt: skip
    attention = {name: at(f"{part}.weight") for name, part in parts.items()}
    attention |= {f"{name}_bias": at(f"{part}.bias") for name, part in parts.items()}
    mlp = {
        "up": at("intermediate.dense.weight"), "up_bias": at("intermediate.dense.bias"),
        "down": at("output.dense.weight"), "down_bias": at("output.dense.bias"),
    }  # fmt: skip
    positions = one("bert.embeddings.position_embeddings.weight")
    if kind == "params":
        positions = positions + one("bert.embeddings.token_type_embeddings.weight")[0]
    return {
        "embedder": {
            "tokens": {"table": one("bert.embeddings.word_embeddings.weight")},
            "positions": positions,
            "norm": norm(one, "bert.embeddings"),
        },
        "stack": {
            "layers": {
                "attention": attention,
                "attention_norm": norm(at, "attention.output"),
                "mlp": mlp,
                "mlp_norm": norm(at, "output"),
            }
        },
        "head": {
            "dense": one("cls.predictions.transform.dense.weight").T,
            "dense_bias": one("cls.predictions.transform.dense.bias"),
            "norm": norm(one, "cls.predictions.transform"),
            "bias": one("cls.predictions.bias"),
        },
    }


@pytest.fixture(scope="module")
def batch(golden):
    attended = golden["attended"].astype(np.int32)
    return {
        "encoder_input_tokens": golden["ids"].astype(np.int32),
        "encoder_target_tokens": golden["targets"].astype(np.int32),
        "encoder_loss_weights": golden["chosen"].astype(np.float32),
        "encoder_segment_ids": attended,
        "encoder_positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
    }


def test_the_parameters_are_those_of_bert(golden):
    fresh = jax.eval_shape(lambda: state.init_params(CONFIG, 0))
    assert jax.tree.map(np.shape, tree(golden, "params")) == jax.tree.map(np.shape, fresh)


def test_logits_equal_berts(golden, batch):
    model = nnx.merge(state.graph(CONFIG), jax.tree.map(jnp.asarray, tree(golden, "params")))
    real = golden["attended"] > 0
    np.testing.assert_allclose(model(batch)[real], golden["logits"][real], atol=2e-5)


@pytest.mark.parametrize("chunks", [1, 4])
def test_loss_and_gradients_equal_berts(chunks, golden, batch):
    def loss(params):
        sums = MaskedLM(loss_chunks=chunks).loss(nnx.merge(state.graph(CONFIG), params), batch, None)
        return sums.loss / sums.weight

    found, gradients = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, tree(golden, "params")))
    np.testing.assert_allclose(found, golden["loss"], rtol=1e-5)
    expected = tree(golden, "gradients")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)
