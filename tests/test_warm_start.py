"""What a warm start takes, leaves and refuses."""

import pytest

from pretrain.errors import InputError
from pretrain.warm_start import WarmStart

STORED = {"encoder/w": (2, 3), "encoder/b": (3,), "logits": (3, 9)}


def test_patterns_choose_by_name():
    start = WarmStart(model_dir="a", include=["encoder/*"], exclude=["*/b"])
    plan = start.plan(STORED, {**STORED, "extra": (1,)})
    assert plan.loaded == ("encoder/w",)
    assert plan.skipped == ("encoder/b", "logits")
    assert plan.new == ("encoder/b", "extra", "logits")


def test_shapes_that_differ_are_both_named():
    with pytest.raises(InputError, match=r"logits has shape \(3, 9\) in a but \(3, 8\) in this model"):
        WarmStart(model_dir="a").plan(STORED, {**STORED, "logits": (3, 8)})


def test_a_warm_start_that_takes_nothing_is_refused():
    with pytest.raises(InputError, match="takes no parameter of a"):
        WarmStart(model_dir="a", include=["decoder/*"]).plan(STORED, STORED)
