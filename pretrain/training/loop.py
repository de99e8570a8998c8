"""The train loop: read it top to bottom."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from pretrain import checkpointing, evaluation, metrics, pipeline
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training import hardware, model_dirs, records, state, step


class Diverged(RuntimeError):
    """The loss or the gradient is not finite; the last good checkpoint is where it was."""


class Observer(Protocol):
    """Who is told what happens; the command line draws it."""

    def started(self, facts: "Facts") -> None: ...
    def progressed(self, step: int, figures: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, figures: Mapping[str, float]) -> None: ...
    def saved(self, step: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a person wants to know before the first step."""

    run: RunConfig
    model_dir: Path
    first_step: int
    parameters: int
    flops_per_step: float
    tokens_per_step: int
    mesh: Mapping[str, int]
    device: str


def train(
    run: RunConfig, config_text: str, model_dir: Path, observer: Observer, stop: Callable[[], bool]
) -> int:
    """Trains from the newest checkpoint in `model_dir` (or from scratch) to `run.steps`.

    `stop` is asked after every step; when it says so, the run is saved and left. Returns the last step.
    Raises Diverged at the first step whose loss or gradient is not finite.
    """
    run.check()
    mesh = run.mesh.build()
    run.check_batch(mesh.shape, jax.process_count())
    with sharding.layout(mesh, run.rules):
        # 1. Everything that can go wrong with the data does so here, before anything is written.
        evaluation.check(run)
        batches = pipeline.batches(run)

        # 2. The state: restored, with the position in the data, or fresh.
        programs = step.programs(run)
        done = model_dirs.latest_step(model_dir)
        if done:
            saved = checkpointing.Checkpoints(model_dir, keep=run.keep_checkpoints, period=run.keep_period)
            train_state = saved.restore(done, programs.abstract_state(), batches)
            batch = next(batches)
            model_dirs.claim(model_dir, config_text)
        else:
            batch = next(batches)
            batches.check_saveable()
            train_state = programs.init()
            model_dirs.claim(model_dir, config_text)
            saved = checkpointing.Checkpoints(model_dir, keep=run.keep_checkpoints, period=run.keep_period)

        # 3. What is about to happen.
        log = records.Records(model_dir, resumed_from=done, writes=jax.process_index() == 0)
        log.event(done, "resumed" if done else "started", processes=jax.process_count())
        facts = describe(run, model_dir, done, state.count(train_state.params), mesh)
        observer.started(facts)
        window = Window(run, facts)

        # 4. One turn a step. The device works on this step while the host reads the figures of the last one.
        with contextlib.closing(saved), contextlib.closing(log):
            for at in range(done + 1, run.steps + 1):
                train_state, sums = programs.train_step(
                    train_state, pipeline.to_devices(batch, mesh, run.rules)
                )
                log.ledger(at, pipeline.batch_hash(batch))
                window.push(at, sums)
                leaving = stop() or at == run.steps
                saving = at % run.checkpoint_period == 0 or leaving
                if at % run.log_period == 0 or saving:  # a window ends where a run may begin again
                    figures = window.close()
                    log.metrics(at, "train", figures)
                    observer.progressed(at, figures)
                if at % run.eval_period == 0 or at == run.steps:
                    with window.paused():
                        figures = evaluation.evaluate(run, programs.eval_step, train_state.params, mesh)
                    if not math.isfinite(figures["loss"]):
                        raise Diverged(f"The held-out loss after step {at} is {figures['loss']}.")
                    log.metrics(at, "eval", figures)
                    observer.evaluated(at, figures)
                if saving:
                    with window.paused():  # has read the step's figures: what is not finite is never saved
                        saved.save(at, train_state, batches, config_text)
                    observer.saved(at)
                if leaving:
                    break
                batch = next(batches)  # after the save: the saved position is that of the saved state
            saved.wait()
            log.event(at, "finished" if at == run.steps else "stopped")
    return at


def describe(run: RunConfig, model_dir: Path, done: int, parameters: int, mesh: jax.sharding.Mesh) -> Facts:
    """The facts of a run. FLOPs: forward once, backward twice, the matrix products of all examples."""
    return Facts(
        run=run,
        model_dir=model_dir,
        first_step=done,
        parameters=parameters,
        flops_per_step=3.0 * run.batch_size * run.model.flops(run.lengths),
        tokens_per_step=run.batch_size * sum(run.lengths.values()),
        mesh=dict(mesh.shape),
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    )


# Figures of a step that are no sums over its tokens.
OF_A_STEP = ("gradient_norm", "parameter_norm", "learning_rate")


class Window:
    """The steps since the last log line: their sums, and the time they took."""

    def __init__(self, run: RunConfig, facts: Facts):
        device = jax.devices()[0]
        self._flops = facts.flops_per_step
        peak = run.peak_flops or hardware.peak_flops(device)
        self._peak = peak * jax.device_count() if peak else None
        self._pending: tuple[int, Any] | None = None
        self._open()

    def _open(self) -> None:
        self._sums: list[dict[str, float]] = []
        self._began = time.perf_counter()
        self._pause = 0.0

    def push(self, at: int, sums: Mapping[str, jax.Array]) -> None:
        """Takes the sums of step `at`, which may still be running, and reads those of the step before."""
        self.drain()
        self._pending = (at, sums)

    def drain(self) -> None:
        """Waits for the newest step and reads its sums. Raises Diverged if they are not finite."""
        if self._pending is None:
            return
        (at, sums), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(sums).items()}
        for name in ("loss", "gradient_norm", "parameter_norm"):
            if not math.isfinite(values[name]):
                raise Diverged(f"The {name.replace('_', ' ')} of step {at} is {values[name]}.")
        self._sums.append(values)

    def paused(self) -> "_Pause":
        """A context whose time is not counted."""
        return _Pause(self)

    def close(self) -> dict[str, float]:
        """The figures of the window, and a new one begins.

        loss, accuracy, ...: means over all tokens; those in OF_A_STEP: of the last step;
        tokens_per_second: useful ones; model_flops_per_second, and utilisation where the peak is known.
        """
        self.drain()
        seconds = time.perf_counter() - self._began - self._pause
        sums, steps = metrics.add(self._sums), len(self._sums)
        figures = metrics.figures(sums)
        figures |= {name: self._sums[-1][name] for name in OF_A_STEP}
        figures["tokens_per_second"] = sums["tokens"] / seconds
        figures["steps_per_second"] = steps / seconds
        figures["model_flops_per_second"] = self._flops * steps / seconds
        if self._peak:
            figures["model_flops_utilisation"] = figures["model_flops_per_second"] / self._peak
        self._open()
        return figures


class _Pause:
    def __init__(self, window: Window):
        self._window = window

    def __enter__(self) -> None:
        self._window.drain()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._window._pause += time.perf_counter() - self._began
