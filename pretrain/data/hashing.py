"""SplitMix64's finalizer, which makes of any 64 bits 64 others that look unrelated.

Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators"
(https://doi.org/10.1145/2660193.2660195). It is no cipher: it mixes well, and keeps no secret.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 0x9E3779B97F4A7C15  # of SplitMix64: 2**64 divided by the golden ratio


def hashed(value: np.ndarray) -> np.ndarray:
    """64 bits of each value, uint64 of any shape but []: each of them depends on each bit of the value."""
    value = before_last_step(value, np.uint64, lambda value, bits: value >> np.uint64(bits))
    return value ^ (value >> np.uint64(31))


def before_last_step(value: Any, number: Callable[[int], Any], shifted: Callable[[Any, int], Any]) -> Any:
    """The finalizer but for its last step, in any library: `seeds` goes on in TensorFlow.

    number: makes a constant. shifted: moves bits to the right.
    """
    value = value + number(STEP)  # without it 0 stays 0
    value = (value ^ shifted(value, 30)) * number(0xBF58476D1CE4E5B9)
    return (value ^ shifted(value, 27)) * number(0x94D049BB133111EB)


def mixed(*values: np.ndarray | int) -> np.ndarray:
    """64 bits of several integers, in order; uint64 of the shape they broadcast to, at least [1].

    >>> mixed(1, 2) == mixed(1, 2), mixed(1, 2) == mixed(2, 1)
    (array([ True]), array([False]))
    """
    state = np.zeros(1, np.uint64)  # an array, since NumPy warns of scalars that overflow
    for value in values:
        state = hashed(state ^ np.asarray(value).astype(np.int64).astype(np.uint64))
    return state
