"""The figures of a stretch of steps, between two lines of the log."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pretrain import metrics
from pretrain.bad_steps import Diverged
from pretrain.checkpointing import Sums
from pretrain.fingerprint import hexadecimal
from pretrain.run import RunConfig
from pretrain.training import hardware, records

# Figures of a step that are no sums over its tokens.
OF_A_STEP = ("gradient_norm", "parameter_norm", "learning_rate")


class Window:
    """The steps since the last log line: their sums, and the time they took. Writes the ledger.

    unfinished: the sums of steps before the first, that no line has yet. bad_in_a_row: how
    many of the steps before it were bad.
    """

    def __init__(self, run: RunConfig, log: records.Records, unfinished: Sequence[Sums], bad_in_a_row: int):
        self._log, self._added = log, run.objective.added
        self._then, self._most = run.bad_steps.then, run.bad_steps.most
        self._bad_in_a_row = bad_in_a_row
        self._compiling = True
        self._flops_of = run.step_flops
        peak = run.peak_flops or hardware.peak_flops(jax.devices()[0])
        self._peak = peak * jax.device_count() if peak else None
        self._pending: tuple[int, Any, int] | None = None
        self._open(unfinished)

    def _open(self, unfinished: Sequence[Sums] = ()) -> None:
        self.unfinished = list(unfinished)  # the sums of each step since the last line; a bad one has none
        self._timed, self._tokens, self._flops = 0, 0.0, 0.0
        self._began = time.perf_counter()
        self._pause = 0.0

    def push(self, at: int, sums: Mapping[str, jax.Array], batch: int) -> None:
        """Takes the sums of step `at`, which may still be running, and reads those of the step before.

        batch: the position of what the step was fed.
        """
        self.drain()
        self._pending = (at, sums, batch)

    def drain(self) -> None:
        """Waits for the newest step, reads its sums and writes its line of the ledger.

        Raises Diverged if the step is bad, and is not to be skipped.
        """
        if self._pending is None:
            return
        (at, sums, batch), self._pending = self._pending, None
        read = jax.device_get(sums)
        batch_hash = hexadecimal(read.pop("batch_hash"))
        values = {name: float(value) for name, value in read.items()}
        if self._compiling:
            self._compiling, self._began, self._pause = False, time.perf_counter(), 0.0
        else:
            self._timed, self._tokens = self._timed + 1, self._tokens + values["tokens"]
            self._flops += 3.0 * self._flops_of(at - 1)  # the backward pass is twice the forward one
        bad = bool(values.pop("bad"))
        self._log.ledger(at, batch, batch_hash, bad)
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        reason = _why_bad(values) if bad or not math.isfinite(values["parameter_norm"]) else ""
        if not reason:
            self.unfinished.append(values)
            return
        self._log.event(at, "bad step", reason=reason, then=self._then)
        if self._then != "skip" or not bad or self._bad_in_a_row > self._most:
            in_a_row = f", {self._bad_in_a_row} bad steps in a row" if self._bad_in_a_row > 1 else ""
            raise Diverged(f"The {reason} at step {at}{in_a_row}.", batch)
        self.unfinished.append({})

    def paused(self) -> "_Pause":
        """A context whose time is not counted."""
        return _Pause(self)

    def close(self) -> dict[str, float]:
        """The figures of the window, and a new one begins.

        loss, accuracy, ...: means over all tokens; those in OF_A_STEP: of the last step;
        tokens_per_second: useful ones; model_flops_per_second, and utilisation where the peak is known.
        Steps that were skipped have a speed and no loss; the first one, which compiles, has no speed.
        """
        self.drain()
        figures: dict[str, float] = {}
        if good := [sums for sums in self.unfinished if sums]:
            figures = metrics.figures(metrics.add(good), self._added)
            figures |= {name: good[-1][name] for name in OF_A_STEP}
        if skipped := len(self.unfinished) - len(good):
            figures["skipped_steps"] = skipped
        if self._timed:
            seconds = time.perf_counter() - self._began - self._pause
            figures["tokens_per_second"] = self._tokens / seconds
            figures["steps_per_second"] = self._timed / seconds
            figures["model_flops_per_second"] = self._flops / seconds
            if self._peak:
                figures["model_flops_utilisation"] = figures["model_flops_per_second"] / self._peak
        self._open()
        return figures


def _why_bad(values: Mapping[str, float]) -> str:
    """What is wrong with a step, such as "loss is nan"."""
    for name in ("loss", "gradient_norm", "parameter_norm"):
        if not math.isfinite(values[name]):
            return f"{name.replace('_', ' ')} is {values[name]}"
    return f"loss is {values['loss'] / values['weight']:.4f}, a spike"


class _Pause:
    def __init__(self, window: Window):
        self._window = window

    def __enter__(self) -> None:
        self._window.drain()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._window._pause += time.perf_counter() - self._began
