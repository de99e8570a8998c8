"""The jitted train step of a run, with nothing around it."""

from typing import Any

import jax

from pretrain import pipeline
from pretrain.benchmarks.measuring import Round, now
from pretrain.parallel import sharding
from pretrain.pipeline import Batch
from pretrain.run import RunConfig
from pretrain.training import step


class BareSteps:
    """The jitted train step of a run and a state of its own, on one batch."""

    def __init__(self, run: RunConfig, mesh: jax.sharding.Mesh, batch: Batch):
        self._run, self._mesh = run, mesh
        with sharding.layout(mesh, run.rules):
            programs = step.programs(run)
            self._step = programs.train_step
            self._batch = pipeline.to_devices(batch, mesh, run.rules)
            self._state = jax.block_until_ready(programs.init())
        first, second = self.round(1), self.round(1)
        self.compile_seconds = first.seconds[0] - second.seconds[0]

    def round(self, steps: int) -> Round:
        """So many steps, each from its call until all it computes is there."""
        ticks = [now()]
        with sharding.layout(self._mesh, self._run.rules):
            for _ in range(steps):
                self._state, _ = jax.block_until_ready(self._step(self._state, self._batch))
                ticks.append(now())
        return Round.between(ticks)

    def start(self, batch: Batch) -> Any:
        """Begins a step on this batch, and returns what will be there when it has ended."""
        with sharding.layout(self._mesh, self._run.rules):
            placed = pipeline.to_devices(batch, self._mesh, self._run.rules)
            self._state, sums = self._step(self._state, placed)
        return sums

    def free(self) -> None:
        """Gives its memory back; no more rounds."""
        del self._state, self._batch
