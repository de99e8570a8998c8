"""How long the train step took to compile, and a trace of some steps."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from pretrain.errors import InputError

CACHE_HIT = "/jax/compilation_cache/cache_hits"


def check(steps: range, done: int, last: int) -> None:
    """Raises InputError for steps to trace that a run which goes on after step `done` does not make."""
    if not done < steps.start < steps.stop <= last + 1:
        raise InputError(
            f"--profile is {steps.start}:{steps.stop}, but the steps to come are {done + 1} to {last}: name "
            "some of them."
        )


class Profiled:
    """The train step, the first call with each kind of batch timed and some of its steps traced.

    directory: TensorBoard's, which finds the trace under Profile; each process adds a file to it.
    told: of an event, with its step and fields.
    paused: a context whose time is none of the steps'; it is compiled in one.
    """

    def __init__(
        self, train_step: Callable, directory: Path, steps: range | None, told: Callable[..., None],
        paused: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):  # fmt: skip
        self._train_step = train_step
        self._paused = paused
        self._directory = directory
        self._steps = steps or range(0)
        self._told = told
        self._tracing = False
        self._compiled: set[Any] = set()  # the kinds of batches so far
        self._newest = 0

    def __call__(self, step: int, state: Any, batch: Any) -> Any:
        if self._tracing and step not in self._steps:
            jax.block_until_ready(state)
            self.close()
        elif step in self._steps and not self._tracing:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        self._newest = step
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            if (kind := jax.tree.structure(batch)) in self._compiled:
                return self._train_step(state, batch)
            self._compiled.add(kind)
            with self._paused():
                return self._timed(step, state, batch)

    def _timed(self, step: int, state: Any, batch: Any) -> Any:
        """A first call returns when the program is compiled, or was found in JAX's cache of them."""
        hits = []

        def heard(event: str, **_: Any) -> None:
            if event == CACHE_HIT:
                hits.append(event)

        jax.monitoring.register_event_listener(heard)
        began = time.monotonic()
        try:
            result = self._train_step(state, batch)
        finally:
            jax.monitoring.unregister_event_listener(heard)
        self._told(step, "compiled", seconds=time.monotonic() - began, cached=bool(hits))
        return result

    def close(self) -> None:
        """Ends the trace if there is one."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._told(self._newest, "traced", first=self._steps.start, directory=str(self._directory))
