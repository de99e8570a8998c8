"""Division happens once, and never by nothing."""

import pytest

from pretrain import metrics


def test_no_targets_have_no_mean():
    with pytest.raises(ValueError, match="no target tokens"):
        metrics.figures({"nll": 0.0, "correct": 0.0, "weight": 0.0, "bytes": 0.0})


def test_perplexity_is_of_the_mean_and_not_a_mean_of_perplexities():
    sums = metrics.add(
        [
            {"nll": 2.0, "correct": 0, "weight": 1, "bytes": 1},
            {"nll": 0.0, "correct": 1, "weight": 3, "bytes": 3},
        ]
    )
    assert metrics.figures(sums)["perplexity"] == pytest.approx(2.718281828**0.5)
