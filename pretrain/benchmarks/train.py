"""How fast a run trains: its bare step, and the loop around it."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pretrain.benchmarks import data
from pretrain.benchmarks.measuring import Machine, Memory, Round, Tick, machine, now, peak_memory
from pretrain.benchmarks.steps import BareSteps
from pretrain.errors import InputError
from pretrain.run import RunConfig
from pretrain.training import hardware, loop
from pretrain.warm_start import Plan

ROUNDS = 4
_NEVER = 10**9


@dataclasses.dataclass(frozen=True)
class TrainBenchmark:
    """What `benchmark` measured.

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
    data: data.Data
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
            "data": {**self.data.figures(), "share_of_step": self.data.seconds / bare["seconds"]},
            "flops_per_step": self.flops,
            "peak_memory": dataclasses.asdict(self.memory),
        }

    def samples(self) -> dict[str, Sequence[float]]:
        """What a plot shows, in seconds."""
        kinds = {"bare step": self.bare, "in the loop": self.loop}
        return {
            name: [second for part in rounds for second in part.seconds] for name, rounds in kinds.items()
        }


def benchmark(
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
    if run.objective.mixes == "batches":
        raise InputError(
            "RunConfig.objective has steps of several shapes (mixes='batches'): measure one of its parts at "
            "a time, as RunConfig.objective."
        )
    mesh = run.mesh.build()
    run.check_batch(mesh)
    say("the data pipeline")
    read, batch = data.measure(run, steps, warmup)
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
        data=read,
        padded_tokens=looped.facts.tokens_per_step,
        flops=looped.facts.flops_per_step,
        peak_flops=peak * mesh.size if peak else None,
        memory=memory,
    )


def _speed_drifts(mesh: jax.sharding.Mesh) -> bool:
    """Whether what else the machine does slows the devices down."""
    return mesh.devices.flat[0].platform == "cpu"


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
        self._ticks.append(now())
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
