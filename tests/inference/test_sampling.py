"""What may be drawn, how often, and that a seed decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import InputError
from pretrain.inference.sampling import Sampling, keep_likeliest

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]


def drawn(sampling: Sampling, number: int = 20_000, seed: int = 0) -> np.ndarray:
    """How often each token comes."""
    tokens = sampling(jnp.tile(LOGITS, (number, 1)), jax.random.key(seed))
    return np.bincount(np.asarray(tokens), minlength=5) / number


def test_greedy_takes_the_likeliest():
    assert drawn(Sampling(), 10).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5),
        (Sampling(temperature=1.0, top_k=2), PROBABILITIES * [0, 1, 0, 1, 0]),
        (Sampling(temperature=1.0, top_p=0.8), PROBABILITIES * [0, 1, 0, 1, 1]),
        (Sampling(temperature=1.0, top_p=0.3), PROBABILITIES * [0, 1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.7), PROBABILITIES * [0, 1, 0, 1, 0]),
        (Sampling(temperature=1.0, top_k=99, top_p=1.0), PROBABILITIES),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling, expected):
    expected = expected / expected.sum()
    assert np.abs(drawn(sampling) - expected).max() < 0.015
    assert (drawn(sampling)[expected == 0] == 0).all()


def test_a_seed_decides():
    sampling = Sampling(temperature=1.0)
    assert (drawn(sampling, seed=1) == drawn(sampling, seed=1)).all()
    assert (drawn(sampling, seed=1) != drawn(sampling, seed=2)).any()


def test_rows_are_cut_independently():
    two = jnp.concatenate([LOGITS, LOGITS[:, ::-1]])
    kept = np.isfinite(np.asarray(keep_likeliest(two, 2, None)))
    assert kept.tolist() == [[False, True, False, True, False], [False, True, False, True, False]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_p": 0.5}, "--temperature 0 draws nothing"),
        ({"temperature": 1.0, "top_k": 0}, "--top-k is 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p is 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)
