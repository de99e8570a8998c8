"""Trains a run twice, the second time through signals that end it, and looks for any bit that differs.

The run is the real command, in processes of its own. What it is in the midst of is read off its model dir,
as anybody can: the ledger grows by a line a step, Orbax's temporary directory is there while a checkpoint is
written, and an evaluation lies between the ledger's line of its step and its own line of the metrics.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pretrain.checkpointing import DIRECTORY
from pretrain.comparison import Comparison, compare
from pretrain.errors import InputError
from pretrain.run import RunConfig
from pretrain.training.model_dirs import latest_step
from pretrain.training.records import LEDGER, METRICS, finished

Moment = Literal["start", "step", "save", "evaluation"]
MOMENTS: tuple[Moment, ...] = ("step", "save", "evaluation", "start")

PROGRAM = (sys.executable, "-m", "pretrain.cli.main")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
POLL = 0.001  # seconds between two looks at a model dir
GRACE = 20.0  # seconds for the other processes to end when one was killed
PATIENCE = 300.0  # seconds for all to end when one was asked to


class RunFailed(RuntimeError):
    """A run ended with an error of its own."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal that ended a launch.

    aim, hit: the moment it was meant for, and the one it came in.
    step: the newest in the ledger when all had ended.
    whom: the processes that it was sent to.
    resumes: the step of the newest checkpoint then; after SIGTERM it is `step`, or nothing was begun yet.
    seconds: from the signal until all processes had ended.
    """

    aim: Moment
    hit: Moment
    step: int
    whom: str
    resumes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """kills: those that were made; fewer than asked for if the run came to its end before."""

    kills: Sequence[Kill]
    comparisons: Sequence[Comparison]

    @property
    def equal(self) -> bool:
        """Whether the run was killed, and nothing is different."""
        return bool(self.kills) and not any(comparison.different for comparison in self.comparisons)


class Observer(Protocol):
    """Who is told what happens; the command line draws it."""

    def began(self, what: str) -> None: ...
    def reached(self, step: int) -> None: ...
    def killed(self, kill: Kill) -> None: ...


def verify(
    run: RunConfig, arguments: Sequence[str], directory: Path, observer: Observer, *,
    kills: int, by: signal.Signals = signal.SIGKILL, processes: int = 1, seed: int = 0,
    program: Sequence[str] = PROGRAM,
) -> Report:  # fmt: skip
    """Trains in `directory`/straight and, killed so many times, in `directory`/killed, and compares them.

    Args:
        arguments: of `pretrain train`, the run file and the settings that make `run`.
        by: SIGKILL, or SIGTERM, after which a run saves and ends by itself.
        processes: of the run, on this machine's CPUs; a kill is for all of them or for one.
        seed: of when to kill, and whom.

    Raises:
        InputError: no kill could be resumed, or the run does not train.
        RunFailed: the run ended with an error of its own, or did not save when it was asked to end.
    """
    check(run)
    rng = random.Random(seed)
    straight, killed = directory / "straight", directory / "killed"

    def launch(model_dir: Path, number: int) -> Launch:
        command = [*program, "train", *arguments, "--model-dir", str(model_dir)]
        return Launch(command, processes, directory / "logs" / f"{model_dir.name}-{number}")

    observer.began("the run that nobody kills")
    with launch(straight, 1) as launched:
        pace = _watched(launched, Sight(straight, run), observer)
    done: list[Kill] = []
    while not finished(killed, run.steps):
        sight = Sight(killed, run)
        observer.began(f"launch {len(done) + 1} of the run that is killed")
        with launch(killed, len(done) + 1) as launched:
            if len(done) == kills:
                _watched(launched, sight, observer)
                break
            aim = _aim(rng, run, sight.resumed_from, done, kills, pace, processes)
            kill = _killed(launched, sight, aim, by, observer)
        if kill:
            done.append(kill)
            observer.killed(kill)
    observer.began("comparing")
    return Report(done, compare(straight, killed, run.steps))


def check(run: RunConfig) -> None:
    """Raises InputError if every kill would send the run back to its beginning."""
    if run.checkpoint_period >= run.steps:
        raise InputError(
            f"RunConfig.checkpoint_period is {run.checkpoint_period} and steps is {run.steps}, so there is "
            f"nothing to resume from before the end: give --gin.checkpoint_period={max(run.steps // 4, 1)}."
        )


def new_directory(given: Path | None) -> Path:
    """`given`, made if it must be, or a temporary directory. Raises InputError if something is in it."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="verify-resume-"))
    if given.exists() and (not given.is_dir() or any(given.iterdir())):
        raise InputError(f"--work-dir {given} is not an empty directory; give a new one.")
    given.mkdir(parents=True, exist_ok=True)
    return given


@dataclasses.dataclass(frozen=True)
class Aim:
    """When to kill: so many seconds into the first such moment from a step on. And whom, by index."""

    moment: Moment
    step: int
    delay: float
    whom: Sequence[int]


def _aim(
    rng: random.Random, run: RunConfig, resumed_from: int, done: Sequence[Kill], kills: int,
    pace: Mapping[Moment, float], processes: int,
) -> Aim:  # fmt: skip
    """Draws the next kill: of what was not hit yet, if there is some; not so late that none could follow."""
    hit = {kill.hit for kill in done}
    moment = rng.choice([each for each in MOMENTS[:3] if each not in hit] or MOMENTS)
    period = {"save": run.checkpoint_period, "evaluation": run.eval_period}.get(moment, 1)
    steps = [step for step in range(resumed_from + 1, run.steps) if step % period == 0]
    share = max(run.steps * (len(done) + 1) / (kills + 1), resumed_from + period)
    step = rng.choice([step for step in steps if step <= share] or steps or [run.steps])
    whom = range(processes) if rng.random() < 0.5 else [rng.randrange(processes)]
    return Aim(moment, resumed_from if moment == "start" else step, rng.random() * pace[moment], whom)


class Sight:
    """What a model dir shows of the run that is launched in it next, to someone who only reads files."""

    def __init__(self, model_dir: Path, run: RunConfig):
        self.model_dir, self._eval_period, self._steps = model_dir, run.eval_period, run.steps
        self.resumed_from = latest_step(model_dir)
        self._left_behind = self._unfinished()
        self._old_ledger = _version(model_dir / LEDGER)

    def look(self) -> tuple[Moment, int]:
        """What the run is in the midst of, and the newest step in the ledger.

        It is "start" until the line of its first step is there.
        """
        step = self._step()
        if self._unfinished() - self._left_behind:
            return "save", step
        if step == self.resumed_from:
            return "start", step
        if step % self._eval_period == 0 or step == self._steps:
            lines = map(json.loads, _last_lines(self.model_dir / METRICS))
            if not any(line["kind"] == "eval" and line["step"] == step for line in lines):
                return "evaluation", step
        return "step", step

    def _step(self) -> int:
        # A run that goes on begins by writing it anew.
        if _version(self.model_dir / LEDGER) == self._old_ledger:
            return self.resumed_from
        lines = _last_lines(self.model_dir / LEDGER)
        return json.loads(lines[-1])["step"] if lines else self.resumed_from

    def _unfinished(self) -> set[tuple[str, int]]:
        """The checkpoints that are not whole, by name and inode."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.model_dir / DIRECTORY) as found:
            return {(each.name, each.inode()) for each in found if UNFINISHED in each.name}
        return set()


def _version(path: Path) -> tuple[int, int] | None:
    """Which file is there, and when it was last written."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _last_lines(path: Path, size: int = 4096) -> list[bytes]:
    """The whole lines in the last so many bytes of a file; none if it is not there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        begin = max(file.seek(0, os.SEEK_END) - size, 0)
        file.seek(begin)
        text = file.read()
        return text[: text.rfind(b"\n") + 1].splitlines()[1 if begin else 0 :]
    return []


class Launch:
    """The processes of one launch; as a context, none of them outlives it."""

    def __init__(self, command: Sequence[str], count: int, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._logs = [log.with_name(f"{log.name}-process-{index}.txt") for index in range(count)]
        self._processes: list[subprocess.Popen] = []
        meeting = ["--coordinator", f"localhost:{_free_port()}", "--processes", str(count), "--process"]
        for index, path in enumerate(self._logs):
            flags = [*meeting, str(index)] if count > 1 else []
            # Several would quarrel over the same accelerators.
            platform = {"JAX_PLATFORMS": "cpu"} if count > 1 else {}
            with path.open("w") as file:
                process = subprocess.Popen(
                    [*command, *flags],
                    env={**os.environ, **platform},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # Ctrl-C is for this program, which ends them
                )
            self._processes.append(process)

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(range(len(self._processes)))

    def running(self) -> bool:
        """Whether any of them still runs. Raises InputError or RunFailed if one ended badly."""
        codes = [process.poll() for process in self._processes]
        if any(codes):
            self.wait(GRACE)
            raise self._failure()
        return None in codes

    def _failure(self) -> Exception:
        """In the words of the process that refused its input, or else of the first that failed."""
        codes = [process.poll() for process in self._processes]
        index = codes.index(2) if 2 in codes else next(index for index, code in enumerate(codes) if code)
        said = [line for line in self._logs[index].read_text().splitlines() if line.startswith("pretrain: ")]
        why = said[-1].removeprefix("pretrain: ") if said else f"It ended with exit code {codes[index]}."
        if codes[index] == 2 and said:
            return InputError(why)
        return RunFailed(f"The run failed. {why} What it printed is in {self._logs[index]}.")

    def kill(self, indices: Iterable[int]) -> bool:
        """Ends these with SIGKILL; whether it was that which ended them."""
        self.send(signal.SIGKILL, indices)
        return {self._processes[index].wait() for index in indices} == {-signal.SIGKILL}

    def send(self, number: signal.Signals, indices: Iterable[int]) -> None:
        for index in indices:
            self._processes[index].send_signal(number)

    def check_left(self, early: bool) -> None:
        """Raises RunFailed unless all ended well; early, SIGTERM may have ended what did not yet listen."""
        codes = [process.poll() for process in self._processes]
        if early and -signal.SIGTERM in codes:
            return  # and the others wait for it in vain
        if None in codes:
            raise RunFailed(f"The run did not end {PATIENCE:g} seconds after it was asked to.")
        if any(codes):
            raise self._failure()

    def wait(self, seconds: float) -> None:
        """Returns when all have ended, or one by SIGTERM itself, or the time is up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            codes = [process.poll() for process in self._processes]
            if None not in codes or -signal.SIGTERM in codes:
                return
            time.sleep(POLL)

    def __len__(self) -> int:
        return len(self._processes)


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("", 0))
        return any_port.getsockname()[1]


def _watched(launch: Launch, sight: Sight, observer: Observer) -> dict[Moment, float]:
    """Lets a launch run to its end; the seconds of a step, and of its shortest start, save and evaluation."""
    took: dict[Moment, list[float]] = {moment: [] for moment in MOMENTS}
    before, began, step = None, time.monotonic(), 0
    while launch.running():
        (moment, step), now = sight.look(), time.monotonic()
        observer.reached(step)
        if moment != before:
            took[moment].append(0.0)
        took[moment][-1] += now - began
        before, began = moment, now
        time.sleep(POLL)
    shortest = {moment: min(seconds, default=0.0) for moment, seconds in took.items()}
    return shortest | {"step": sum(took["step"]) / max(step, 1)}


def _killed(
    launch: Launch, sight: Sight, aim: Aim, by: signal.Signals, observer: Observer
) -> Kill | None:  # fmt: skip
    """Kills as aimed; None if the run came to its end before.

    A moment that is over before its time is let go, and the next one is not given any.
    """
    delay = aim.delay
    while launch.running():
        moment, step = sight.look()
        observer.reached(step)
        if moment == aim.moment and step >= aim.step:
            time.sleep(delay)
            if sight.look()[0] == aim.moment:
                return _kill(launch, sight, aim, by)
            delay = 0.0
        time.sleep(POLL)
    return None


def _kill(launch: Launch, sight: Sight, aim: Aim, by: signal.Signals) -> Kill | None:
    """None if the run came to its end before."""
    began = time.monotonic()
    if by == signal.SIGKILL:
        if not launch.kill(aim.whom):
            return None
        hit, step = sight.look()
        launch.wait(GRACE)
    else:
        hit, _ = sight.look()
        launch.send(by, aim.whom)
        launch.wait(PATIENCE)
        launch.check_left(early=hit == "start")
        step = sight.look()[1]
    kill = Kill(
        aim.moment,
        hit,
        step,
        whom="all" if len(aim.whom) == len(launch) else f"process {aim.whom[0]}",
        resumes=latest_step(sight.model_dir),
        seconds=time.monotonic() - began,
    )
    if by == signal.SIGTERM and kill.resumes != step:
        raise RunFailed(f"Asked to end, the run made step {step} and saved step {kill.resumes}.")
    return kill
