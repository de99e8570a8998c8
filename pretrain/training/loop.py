"""The train loop: read it top to bottom."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from pretrain import checkpointing, evaluation, pipeline
from pretrain.bad_steps import Diverged
from pretrain.checkpointing import Checkpoints, Damaged, NotSaved
from pretrain.errors import InputError
from pretrain.parallel import processes, sharding
from pretrain.run import RunConfig
from pretrain.training import loading, model_dirs, profiling, records, skips, state, step
from pretrain.training.state import TrainState
from pretrain.training.watchdog import Watchdog
from pretrain.training.window import Window
from pretrain.trees import named_leaves
from pretrain.warm_start import Plan

VISIBLE = 60.0  # seconds until what one process wrote must be seen by all


class Observer(Protocol):
    """Who is told what happens; the command line draws it."""

    def started(self, facts: "Facts") -> None: ...
    def progressed(self, step: int, figures: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, figures: Mapping[str, float]) -> None: ...
    def saved(self, step: int) -> None: ...
    def happened(self, event: str, fields: Mapping[str, Any]) -> None: ...
    def said(self, message: str) -> None: ...
    def warm_started(self, plan: Plan) -> None: ...


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
    run: RunConfig,
    config_text: str,
    model_dir: Path,
    observer: Observer,
    stop: Callable[[int], bool],
    *,
    watchdog: Watchdog | None = None,
    skip_steps: range | None = None,
    profile: range | None = None,
    admit: Callable[[], None] = lambda: None,
) -> int:
    """Trains from the newest checkpoint in `model_dir` (or from scratch) to `run.steps`.

    Args:
        stop: asked after every step, and after every batch of an evaluation, with the newest step; when it
            says so, the run is saved and left. An evaluation that was left is made when the run goes on.
        watchdog: told what the loop waits for.
        skip_steps: go back to before these steps, and leave out what they were fed.
        profile: steps to trace.
        admit: raises InputError if the model dir is no place for this run; asked when no other run is in it.

    Returns:
        The last step.

    Raises:
        Diverged: at the first bad step, or at one too many where `run.bad_steps` goes on.
        checkpointing.NotSaved: a checkpoint could not be written.
    """
    run.check()
    mesh = run.mesh.build()
    run.check_batch(mesh)
    with sharding.layout(mesh, run.rules), model_dirs.held(model_dir):
        admit()
        processes.refuse_difference("The settings", f"{config_text} {skip_steps}")
        _agree_on(model_dir)
        if skip_steps:
            _go_back(run, model_dir, skip_steps, observer)
        if records.finished(model_dir, run.steps) and model_dirs.latest_step(model_dir) >= run.steps:
            return run.steps
        if (done := model_dirs.latest_step(model_dir)) > run.steps:
            raise InputError(
                f"RunConfig.steps is {run.steps}, but the run in {model_dir} has made {done} and did not end "
                f"there: give at least {done}, or another --model-dir."
            )
        if profile:
            profiling.check(profile, done, run.steps)
        while True:
            try:
                watched = watchdog or Watchdog()
                return _train(run, config_text, model_dir, mesh, observer, stop, watched, profile)
            except Diverged as bad:
                _roll_back(run, model_dir, bad, observer)


def _agree_on(model_dir: Path) -> None:
    """Raises InputError if the processes do not see the same in the model dir."""
    seen = f"{model_dirs.latest_step(model_dir)} {skips.read(model_dir)}"
    processes.refuse_difference(f"The contents of {model_dir}", seen)


def _go_back(run: RunConfig, model_dir: Path, steps: range, observer: Observer) -> None:
    """To before these steps, leaving out what they were fed, if the checkpoint there is sound."""
    asked = skips.asked(model_dir, steps, records.read(model_dir / records.LEDGER))
    if asked is None:
        observer.said(
            f"--skip-steps {steps.start}:{steps.stop} was done before; name more steps to leave out what "
            "they are fed now."
        )
        return
    with contextlib.closing(Checkpoints(model_dir, read_only=True)) as saved:
        try:
            saved.check(asked.before, step.programs(run).abstract_state())
        except Damaged as error:
            raise InputError(
                f"{error} --skip-steps would go back to it: name steps that another one is before, or bring "
                "back a copy."
            ) from error
    observer.said(skips.go_back(model_dir, asked))
    processes.sync("later checkpoints are out of the way")


def _roll_back(run: RunConfig, model_dir: Path, bad: Diverged, observer: Observer) -> None:
    """Leaves out what led from the newest checkpoint to the bad step; raises `bad` if that is not wanted."""
    done = model_dirs.latest_step(model_dir)
    if run.bad_steps.then != "roll back" or bad.batch is None or not done:
        raise bad
    before = skips.rollbacks(model_dir)
    if before >= run.bad_steps.most:
        raise Diverged(f"{bad} The run was rolled back {before} times before.") from bad
    processes.sync("all know how often the run was rolled back")
    first = checkpointing.position(model_dir, done)
    skips.leave_out(model_dir, range(first, bad.batch + 1), why=str(bad), rolled_back_to=done)
    observer.said(f"{bad} Going back to step {done} and leaving out {bad.batch + 1 - first} batches.")


def _train(
    run: RunConfig, config_text: str, model_dir: Path, mesh: jax.sharding.Mesh,
    observer: Observer, stop: Callable[[int], bool], watchdog: Watchdog, profile: range | None,
) -> int:  # fmt: skip
    """`train`, once what is left out is known, until it is done, stopped or meets a bad step."""
    processes.sync("what is left out is written")
    _agree_on(model_dir)
    left_out = skips.read(model_dir)
    with contextlib.ExitStack() as stack:
        # 1. Everything that can go wrong with the data does so here, before anything is written.
        watchdog.doing("the data to be opened")
        evaluation.check(run)
        batches = pipeline.batches(run, skips=left_out)

        # 2. The state: restored, with the position in the data, or fresh.
        watchdog.doing("the state to be restored or made")
        programs = step.programs(run)
        if model_dirs.latest_step(model_dir):
            saved = stack.enter_context(_checkpoints(run, model_dir))
            anew = named_leaves({"recent": jax.jit(run.bad_steps.empty)()})
            done, train_state = saved.restore_newest(programs.abstract_state(), batches, observer.said, anew)
            batch, unfinished = next(batches), saved.window(done)
        else:
            done, batch, unfinished = 0, next(batches), []
            batches.snapshot()  # better known now than at a save that it cannot be taken
            train_state = _fresh(run, programs, observer)
        model_dirs.claim(model_dir, config_text)
        processes.sync("the model dir is claimed")
        _refuse_separate_places(model_dir)
        if not done:
            saved = stack.enter_context(_checkpoints(run, model_dir))

        # 3. What is about to happen.
        log = records.Records(model_dir, resumed_from=done, writes=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(log))
        processes.sync("the records end where the run goes on")
        history = records.History(model_dir)
        log.event(done, "resumed" if done else "started", processes=jax.process_count())
        facts = describe(run, model_dir, done, state.count(train_state.params), mesh)
        observer.started(facts)
        for what, name in (("warm-up", "warmup_steps"), ("schedule", "total_steps")):
            if (taken := getattr(run.optimizer.schedule, name, 0)) > run.steps:
                observer.said(f"The {what} takes {taken:,} steps, and the run has {run.steps:,}.")
        for skip in skips.unsaid(model_dir, history.events):
            log.event(done, "left out", **skip)
        window = Window(run, log, unfinished, history.bad_in_a_row())

        def evaluate(at: int) -> bool:
            """Whether the evaluation that is due after step `at`, if one is, came to its end."""
            if not at or (at % run.eval_period and at < run.steps):
                return True
            watchdog.doing(f"the evaluation after step {at}")
            try:
                with window.paused():
                    figures = evaluation.evaluate(
                        run, programs.eval_step, train_state.params, mesh, stop=lambda: stop(at)
                    )
            except evaluation.Stopped:
                return False
            if not math.isfinite(figures["loss"]):
                raise Diverged(f"The held-out loss after step {at} is {figures['loss']}.")
            log.metrics(at, "eval", figures)
            observer.evaluated(at, figures)
            return True

        def told(step: int, event: str, **fields: Any) -> None:
            log.event(step, event, **fields)
            observer.happened(event, fields)

        profiled = profiling.Profiled(
            programs.train_step, model_dir / records.BOARD, profile, told, window.paused
        )
        stack.enter_context(contextlib.closing(profiled))
        at = done
        asked = not (history.evaluated(done) or evaluate(done))  # a run that was asked to stop left it

        # 4. One turn a step. The device works on this step while the host reads the figures of the last one.
        while at < run.steps and not asked:
            at += 1
            watchdog.doing(f"step {at}, or for the one before it to end")
            train_state, sums = profiled(at, train_state, pipeline.to_devices(batch, mesh, run.rules))
            window.push(at, sums, batches.position - 1)
            asked = stop(at)
            saved.check_saved()
            if at % run.log_period == 0 or at == run.steps:
                figures = window.close()
                log.metrics(at, "train", figures)
                observer.progressed(at, figures)
            asked = asked or not evaluate(at)
            if at % run.checkpoint_period == 0 or at == run.steps or asked:
                with window.paused():  # has read the step's figures: what is not finite is never saved
                    watchdog.doing(f"the checkpoint of step {at}, or for the one before it to be written")
                    log.sync()
                    saved.save(at, train_state, batches, config_text, window.unfinished)
                observer.saved(at)
            if at < run.steps and not asked:
                watchdog.doing(f"the data of step {at + 1}")
                batch = next(batches)  # after the save: the saved position is that of the saved state
        watchdog.doing("the last checkpoint to be written")
        saved.wait()
        log.event(at, "stopped" if asked else records.FINISHED)
    return at


def _refuse_separate_places(model_dir: Path) -> None:
    """Raises InputError if a process does not find what process 0 wrote; NFS may take its time to show it."""
    deadline = time.monotonic() + VISIBLE
    while not (there := (model_dir / model_dirs.CONFIG).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if processes.on_any(not there):
        raise InputError(
            f"{model_dir} is not the same directory for all processes: give one on a file system they share."
        )


@contextlib.contextmanager
def _checkpoints(run: RunConfig, model_dir: Path) -> Iterator[Checkpoints]:
    saved = Checkpoints(model_dir, keep=run.keep_checkpoints, period=run.keep_period)
    try:
        yield saved
    except BaseException:
        with contextlib.suppress(NotSaved):  # what is on its way says more
            saved.close()
        raise
    saved.close()


def _fresh(run: RunConfig, programs: step.Programs, observer: Observer) -> TrainState:
    """The state before the first step: random, but for what a warm start takes from another run."""
    fresh = programs.init()
    if run.warm_start is None:
        return fresh
    params, plan = loading.warm_started(run.warm_start, fresh.params)
    observer.warm_started(plan)
    return dataclasses.replace(fresh, params=params)


def describe(run: RunConfig, model_dir: Path, done: int, parameters: int, mesh: jax.sharding.Mesh) -> Facts:
    """The facts of a run. FLOPs: forward once, backward twice, the matrix products of all examples."""
    return Facts(
        run=run,
        model_dir=model_dir,
        first_step=done,
        parameters=parameters,
        flops_per_step=3.0 * run.step_flops(),
        tokens_per_step=round(run.step_tokens()),
        mesh=dict(mesh.shape),
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    )
