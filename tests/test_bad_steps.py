"""When a step is bad, by the losses before it."""

import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.bad_steps import BadSteps
from pretrain.errors import InputError


def judged(rule: BadSteps, losses, gradient_norm=1.0) -> list[bool]:
    recent, found = rule.empty(), []
    for loss in losses:
        bad, recent = rule.judge(jnp.float32(loss), jnp.float32(gradient_norm), recent)
        found.append(bool(bad))
    return found


def test_what_is_not_finite_is_bad_whatever_the_rule():
    assert judged(BadSteps(), [1.0, np.nan, np.inf, 9.0]) == [False, True, True, False]
    assert judged(BadSteps(), [1.0], gradient_norm=np.inf) == [True]


def test_a_spike_is_bad_once_the_window_is_full_and_does_not_enter_it():
    noise = np.random.RandomState(0).normal(3.0, 0.1, 20)
    rule = BadSteps(spike=6.0, window=20)
    assert not any(judged(rule, [9.0, *noise[:-1]]))  # the window is not full
    found = judged(rule, [*noise, 4.5, 3.1, 4.5, 3.0])
    assert found == [False] * 20 + [True, False, True, False]


def test_a_quiet_stretch_does_not_make_a_small_step_a_spike():
    assert judged(BadSteps(spike=6.0, window=5), [2.0] * 5 + [2.1, 2.2]) == [False] * 6 + [True]


@pytest.mark.parametrize("settings", [{"then": "explode"}, {"spike": 0.0}, {"window": 2}, {"most": 0}])
def test_a_wrong_setting_is_refused(settings):
    with pytest.raises(InputError, match="BadSteps"):
        BadSteps(**settings)
