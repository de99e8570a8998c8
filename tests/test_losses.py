"""The loss against T5X's own figures and against the plain definition."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pretrain import losses, pipeline
from pretrain.objectives import CausalLM, SpanCorruption
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state

# Figures of T5X's loss code for these logits and weights; see (label smoothing, z) below.
RNG = np.random.RandomState(0)
LOGITS = RNG.randn(2, 4, 8).astype(np.float32)
TARGETS = RNG.randint(0, 8, (2, 4))
WEIGHTS = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("smoothing", "z", "loss", "z_part"),
    [(0.0, 0.0, 9.6613531, 0.0), (0.0, 1e-4, 9.6649694, 0.00361686), (0.1, 1e-2, 7.7760129, 0.3616865)],
)
def test_equals_t5x(smoothing, z, loss, z_part):
    sums = losses.token_cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=smoothing, z_loss=z)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-6)
    assert float(sums.z_loss) == pytest.approx(z_part, rel=1e-5)
    assert float(sums.weight) == 5


def test_plain_part_does_not_depend_on_smoothing_or_z():
    plain = losses.token_cross_entropy(LOGITS, TARGETS, WEIGHTS)
    other = losses.token_cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=0.2, z_loss=0.1)
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(LOGITS), jnp.asarray(TARGETS))
    np.testing.assert_allclose(plain.nll, (expected * WEIGHTS).sum(), rtol=1e-6)
    np.testing.assert_array_equal(plain.nll, other.nll)
    np.testing.assert_array_equal(plain.correct, ((LOGITS.argmax(-1) == TARGETS) * WEIGHTS).sum())


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("decoder", None),
        ("encoder_decoder", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("decoder", {"data": 4, "context": 2}),
    ],
    ids=str,
)
def test_a_loss_in_chunks_is_the_whole_one(family, sizes, tiny_config, token_batch):
    """Sums and gradients; and no logits of the whole length are made."""
    config = tiny_config(family, dropout=0.1, vocab_size=128)
    batch = token_batch(family, packed=True)
    kind = {"decoder": CausalLM, "encoder_decoder": SpanCorruption}[family]
    mesh = MeshConfig(**sizes).build() if sizes else None

    def compute(chunks):
        objective = kind(z_loss=1e-3, label_smoothing=0.1, loss_chunks=chunks)
        with sharding.layout(mesh, sharding.Rules()) if mesh else contextlib.nullcontext():
            graph = state.graph(config)

            def loss(params, batch):
                sums = objective.loss(nnx.merge(graph, params), batch, jax.random.key(3))
                return sums.loss, sums

            rows = pipeline.to_devices(batch, mesh, sharding.Rules()) if mesh else batch
            params = jax.jit(lambda: state.init_params(config, 0))()
            program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, rows)
            return jax.device_get(program.compile()(params, rows)), program.as_text()

    (whole, text), (parts, text_of_parts) = compute(1), compute(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), whole, parts)
    assert "8x16x128xf32" in text and "8x16x128xf32" not in text_of_parts


def test_of_equal_logits_the_first_is_said():
    """As argmax does, so that a model without an opinion is not right everywhere."""
    logits, weights = jnp.zeros((1, 3, 5)).at[0, 2, 3:].set(1.0), jnp.ones((1, 3))
    for targets, correct in (([0, 1, 3], 2), ([4, 4, 4], 0)):
        sums = losses.token_cross_entropy(logits, jnp.array([targets]), weights)
        assert sums.correct == correct


def test_weight_zero_has_no_gradient():
    gradient = jax.grad(
        lambda x: losses.token_cross_entropy(x, TARGETS, WEIGHTS, label_smoothing=0.1, z_loss=0.1).loss
    )(jnp.asarray(LOGITS))
    assert (np.asarray(gradient)[WEIGHTS == 0] == 0).all()
    assert (np.abs(np.asarray(gradient)[WEIGHTS == 1]).sum(-1) > 0).all()


def test_a_perfect_model_reaches_zero_with_smoothing():
    smoothing, vocab = 0.1, 8
    target = np.full(vocab, smoothing / (vocab - 1))
    target[3] = 1 - smoothing
    logits = np.log(target)[None, None].astype(np.float32)
    sums = losses.token_cross_entropy(
        logits, np.array([[3]]), np.ones((1, 1), np.float32), label_smoothing=smoothing
    )
    assert float(sums.loss) == pytest.approx(0, abs=1e-6)
