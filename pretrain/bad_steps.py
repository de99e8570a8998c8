"""Steps that would ruin a run: how they are told, and what becomes of them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pretrain.errors import InputError

Then = Literal["stop", "skip", "roll back"]
MAD_OF_NORMAL = 1.4826  # standard deviations in a median absolute deviation of normal numbers
LEAST_SPREAD = 0.01  # of the median, so that a quiet stretch does not make a small step up a spike


class Diverged(RuntimeError):
    """A step is bad, and the run ends there. batch: the position of what the step was fed."""

    def __init__(self, message: str, batch: int | None = None):
        super().__init__(message)
        self.batch = batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadSteps:
    """A step is bad if its loss or gradient is not finite, or if its loss is a spike.

    Attributes:
        then: "stop" ends the run, the last good checkpoint kept. "skip" drops the update of that step alone
            (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, section 5.1, skip batches likewise).
            "roll back" goes back to the last checkpoint and leaves out the batches from there to the bad one.
        spike: a loss is a spike if it is further above the median of the last `window` good ones than so many
            standard deviations (estimated robustly, from the median absolute deviation); None: no loss is.
        window: losses that are remembered; before there are so many, no loss is a spike.
        most: bad steps in a row that are skipped, or rollbacks, before the run stops all the same.
    """

    then: Then = "stop"
    spike: float | None = None
    window: int = 100
    most: int = 5

    def __post_init__(self):
        if self.then not in ("stop", "skip", "roll back"):
            raise InputError(f"BadSteps.then is {self.then!r}; give 'stop', 'skip' or 'roll back'.")
        if self.spike is not None and not self.spike > 0:
            raise InputError(f"BadSteps.spike is {self.spike}; give a number above 0, or None.")
        if self.window < 3 or self.most < 1:
            raise InputError(
                f"BadSteps.window is {self.window} and most is {self.most}; give at least 3 and at least 1."
            )

    def empty(self) -> Any:
        """What a run remembers before its first step: float32 [window], or nothing if no loss is a spike."""
        return () if self.spike is None else jnp.full((self.window,), jnp.nan, jnp.float32)

    def judge(self, loss: jax.Array, gradient_norm: jax.Array, recent: Any) -> tuple[jax.Array, Any]:
        """(whether the step is bad, what is remembered after it); both numbers float32 [].

        >>> rule = BadSteps(spike=6.0, window=3)
        >>> recent = jnp.array([2.0, 2.2, 2.1])
        >>> [bool(rule.judge(jnp.float32(loss), jnp.float32(1), recent)[0]) for loss in (2.5, 4, jnp.nan)]
        [False, True, True]
        """
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))
        if self.spike is None:
            return bad, recent
        median = jnp.median(recent)
        spread = MAD_OF_NORMAL * jnp.median(jnp.abs(recent - median))
        limit = median + self.spike * jnp.maximum(spread, LEAST_SPREAD * jnp.abs(median))
        bad |= loss > limit  # never true while there is a NaN in the window
        return bad, jnp.where(bad, recent, jnp.concatenate([recent[1:], loss[None]]))
