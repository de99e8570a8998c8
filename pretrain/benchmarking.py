"""How fast a run is: its bare step, the loop around it, and its data alone."""

import dataclasses
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pretrain import pipeline
from pretrain.parallel import sharding
from pretrain.pipeline import Batch
from pretrain.run import RunConfig
from pretrain.training import hardware, loop, step
from pretrain.warm_start import Plan

ROUNDS = 4
_NEVER = 10**9


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    platform: str
    device_kind: str
    devices: int
    processor: str
    cores: int
    jax: str
    python: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """The most `bytes` ever in use, `of` one device or, where the backend does not count, of this process."""

    bytes: int
    of: str


@dataclasses.dataclass(frozen=True)
class Data:
    """The pipeline with nothing else running, and what its batches hold on average.

    first_batch_seconds: until there is a batch, which takes a full shuffle buffer.
    seconds: a batch, from then on. tokens: without padding, of all processes' rows; examples: likewise.
    """

    first_batch_seconds: float
    seconds: float
    tokens: float
    examples: float


Tick = tuple[float, float]


def _now() -> Tick:
    """Seconds on the clock, and of CPU time."""
    return time.perf_counter(), time.process_time()


@dataclasses.dataclass(frozen=True)
class Round:
    """Steps in a row: the `seconds` of each, and the mean `cpu_seconds` of all threads of this process."""

    seconds: Sequence[float]
    cpu_seconds: float

    @classmethod
    def between(cls, ticks: Sequence[Tick]) -> "Round":
        """The steps between these points in time, of which there is one more than steps."""
        clock, cpu = np.transpose(ticks)
        return cls(np.diff(clock).tolist(), float(np.diff(cpu).mean()))


@dataclasses.dataclass(frozen=True)
class TrainBenchmark:
    """What `train` measured.

    compile_seconds: of the train step, tracing too.
    bare: rounds of the jitted step on one batch that stays on the devices, each step waited for.
    loop: rounds of `training.loop.train`; the round in place i ran beside the bare one in place i.
    padded_tokens: cells of a batch. flops: model FLOPs of a step (forward once, backward twice).
    peak_flops: of all devices; None where it is not known.
    """

    machine: Machine
    parameters: int
    compile_seconds: float
    bare: Sequence[Round]
    loop: Sequence[Round]
    data: Data
    padded_tokens: int
    flops: float
    peak_flops: float | None
    memory: Memory

    def speed(self, rounds: Sequence[Round]) -> dict[str, float]:
        """Seconds a step (median, min, max; mean of CPU), and what the median comes to a second."""
        steps = [seconds for part in rounds for seconds in part.seconds]
        median = statistics.median(steps)
        figures = {
            "seconds": median,
            "min_seconds": min(steps),
            "max_seconds": max(steps),
            "cpu_seconds": statistics.mean(part.cpu_seconds for part in rounds),
            "tokens_per_second": self.data.tokens / median,
            "padded_tokens_per_second": self.padded_tokens / median,
            "examples_per_second": self.data.examples / median,
            "model_flops_per_second": self.flops / median,
        }
        if self.peak_flops:
            figures["model_flops_utilisation"] = self.flops / median / self.peak_flops
        return figures

    @property
    def overheads(self) -> list[float]:
        """Of each round: how much longer the median step takes in the loop than bare, as a share."""
        pairs = zip(self.loop, self.bare, strict=True)
        return [
            statistics.median(inside.seconds) / statistics.median(bare.seconds) - 1 for inside, bare in pairs
        ]

    @property
    def overhead(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.overheads)

    @property
    def cpu_overhead(self) -> float:
        """How much more CPU time a step takes in the loop: what else the machine does hardly moves it."""
        inside, bare = (self.speed(rounds)["cpu_seconds"] for rounds in (self.loop, self.bare))
        return inside / bare - 1

    def figures(self) -> dict:
        """Everything as plain JSON values."""
        bare = self.speed(self.bare)
        return {
            "machine": dataclasses.asdict(self.machine),
            "parameters": self.parameters,
            "compile_seconds": self.compile_seconds,
            "step": bare,
            "loop": self.speed(self.loop),
            "loop_overhead": self.overhead,
            "loop_overhead_of_rounds": self.overheads,
            "loop_cpu_overhead": self.cpu_overhead,
            "data": {**dataclasses.asdict(self.data), "share_of_step": self.data.seconds / bare["seconds"]},
            "flops_per_step": self.flops,
            "peak_memory": dataclasses.asdict(self.memory),
        }


def train(
    run: RunConfig, *, steps: int = 20, warmup: int = 5, say: Callable[[str], None] = lambda _: None
) -> TrainBenchmark:
    """Measures `run` on the devices of this process, in ROUNDS rounds of the loop and of bare steps.

    On a CPU, whose speed drifts with what else it does, the rounds alternate. An accelerator's is steady,
    and the states of both may not fit it: there, the bare rounds come first.

    Args:
        run: what to measure; nothing of it is changed but that it neither evaluates nor saves.
        steps: timed steps of either kind, divided over the rounds.
        warmup: steps before the timed ones of every round, at least 1; five use up what was read ahead.
        say: told what is being measured.

    Raises:
        InputError: the run is wrong.
        bad_steps.Diverged: a loss is not finite.
    """
    run.check()
    mesh = run.mesh.build()
    run.check_batch(mesh)
    say("the data pipeline")
    data, batch = measure_data(run, steps, warmup)
    say("the bare step: compiling")
    bare = BareSteps(run, mesh, batch)
    bare.round(warmup)
    memory = peak_memory()

    timed = -(-steps // ROUNDS)
    bare_rounds: list[Round] = []

    def bare_round() -> None:
        say(f"the bare step: round {len(bare_rounds) + 1} of {ROUNDS}")
        bare.round(warmup)
        bare_rounds.append(bare.round(timed))
        say("the loop")

    alternate = _speed_drifts(mesh)
    if not alternate:
        for _ in range(ROUNDS):
            bare_round()
        bare.free()
    say("the loop: compiling")
    looped = _LoopRounds(warmup, timed, bare_round if alternate else lambda: None)
    looped.measure(run)
    peak = run.peak_flops or hardware.peak_flops(mesh.devices.flat[0])
    return TrainBenchmark(
        machine=machine(mesh),
        parameters=looped.facts.parameters,
        compile_seconds=bare.compile_seconds,
        bare=bare_rounds,
        loop=looped.rounds,
        data=data,
        padded_tokens=looped.facts.tokens_per_step,
        flops=looped.facts.flops_per_step,
        peak_flops=peak * mesh.size if peak else None,
        memory=memory,
    )


def _speed_drifts(mesh: jax.sharding.Mesh) -> bool:
    """Whether what else the machine does slows the devices down."""
    return mesh.devices.flat[0].platform == "cpu"


def measure_data(run: RunConfig, batches: int, warmup: int) -> tuple[Data, Batch]:
    """Reads the first batches that training would; also returns one of them."""
    began = time.perf_counter()
    stream = pipeline.batches(run)
    batch = next(stream)
    first = time.perf_counter() - began
    for _ in range(warmup):
        next(stream)
    began = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = (time.perf_counter() - began) / batches
    contents = [_contents(next(stream)) for _ in range(min(batches, 20))]
    tokens, examples = np.mean(contents, axis=0) * jax.process_count()
    return Data(first, seconds, float(tokens), float(examples)), batch


def _contents(batch: Batch) -> tuple[int, int]:
    """(tokens, examples) in the rows of a batch."""
    segments = [value for name, value in batch.items() if name.endswith("_segment_ids")]
    examples = np.max([value.max(axis=1) for value in segments], axis=0)
    return sum(int((value > 0).sum()) for value in segments), int(examples.sum())


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
        ticks = [_now()]
        with sharding.layout(self._mesh, self._run.rules):
            for _ in range(steps):
                self._state, _ = jax.block_until_ready(self._step(self._state, self._batch))
                ticks.append(_now())
        return Round.between(ticks)

    def free(self) -> None:
        """Gives its memory back; no more rounds."""
        del self._state, self._batch


class _Measured(Exception):
    """Leaves the loop when enough is known, without an evaluation and a checkpoint that nobody wants."""


class _LoopRounds:
    """Times the steps of `loop.train` from inside: it observes the loop, and is asked whether to stop."""

    def __init__(self, warmup: int, timed: int, between: Callable[[], None]):
        self.rounds: list[Round] = []
        self._warmup, self._timed, self._between = warmup, timed, between
        self._ticks: list[Tick] = []

    def measure(self, run: RunConfig) -> None:
        """Trains for the rounds, in a model dir that is thrown away."""
        run = dataclasses.replace(run, steps=_NEVER, eval_period=_NEVER, checkpoint_period=_NEVER)
        with tempfile.TemporaryDirectory() as directory:
            try:
                loop.train(run, "", Path(directory) / "model", self, self.stop)
            except _Measured:
                return

    def stop(self, _step: int) -> bool:
        """Asked once a step, when it is under way and the figures of the one before have been read."""
        self._ticks.append(_now())
        if len(self._ticks) == self._warmup + self._timed + 1:
            self.rounds.append(Round.between(self._ticks[self._warmup :]))
            self._between()
            self._ticks = []
        if len(self.rounds) == ROUNDS:
            raise _Measured
        return False

    def started(self, facts: loop.Facts) -> None:
        self.facts = facts

    def progressed(self, step: int, figures: Mapping[str, float]) -> None:
        """Not of interest: what it costs the loop to get here is in the steps."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Never happens."""

    def saved(self, step: int) -> None:
        """Never happens."""

    def happened(self, event: str, fields: Mapping[str, Any]) -> None:
        """Compiled; nothing is traced."""

    def said(self, message: str) -> None:
        """Never happens: there is no checkpoint to be wrong."""

    def warm_started(self, plan: Plan) -> None:
        """Not of interest."""


def peak_memory() -> Memory:
    """The peak so far of the first device of this process, or else of the process itself."""
    if (used := hardware.peak_memory(jax.local_devices()[0])) is not None:
        return Memory(used, "device")
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process")


def machine(mesh: jax.sharding.Mesh) -> Machine:
    """The devices of `mesh` and the host of this process."""
    device = mesh.devices.flat[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        platform=device.platform,
        device_kind=device.device_kind,
        devices=mesh.size,
        processor=_processor(),
        cores=cores,
        jax=jax.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    """The CPU's name, which Python itself does not know on Linux."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
