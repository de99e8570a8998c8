"""The loss against T5X's own figures and against the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import losses

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
