"""How fast a run's data are read, by themselves and beside its steps."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from pretrain import pipeline
from pretrain.benchmarks.measuring import Machine, Round, machine, now
from pretrain.benchmarks.steps import BareSteps
from pretrain.data import rows
from pretrain.parallel import sharding
from pretrain.pipeline import Batch
from pretrain.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Data:
    """The pipeline with nothing else running, and what its batches hold on average.

    first_batch_seconds: until there is a batch, which takes a full shuffle buffer.
    batches: the time that each took from then on, and their CPU time.
    tokens: of a batch without padding, of all processes' rows; examples: likewise.
    """

    first_batch_seconds: float
    batches: Round
    tokens: float
    examples: float

    @property
    def seconds(self) -> float:
        """A batch, on average: some are there already, and the next ones take longer for it."""
        return statistics.mean(self.batches.seconds)

    def figures(self) -> dict[str, float]:
        return {
            "first_batch_seconds": self.first_batch_seconds,
            "seconds": self.seconds,
            "cpu_seconds": self.batches.cpu_seconds,
            "tokens": self.tokens,
            "examples": self.examples,
            "tokens_per_second": self.tokens / self.seconds,
            "tokens_per_cpu_second": self.tokens / self.batches.cpu_seconds,
        }


@dataclasses.dataclass(frozen=True)
class DataBenchmark:
    """What `benchmark` measured.

    padded_tokens: cells of a batch. steps: the seconds of steps fed by the pipeline; waits: how much of each
    the devices had nothing to do, since the next batch was not there.
    """

    machine: Machine
    data: Data
    padded_tokens: int
    steps: Sequence[float]
    waits: Sequence[float]

    @property
    def share_waited(self) -> float:
        return sum(self.waits) / sum(self.steps)

    def figures(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "machine": dataclasses.asdict(self.machine),
            "data": {**self.data.figures(), "padding": 1 - self.data.tokens / self.padded_tokens},
            "step_seconds": statistics.median(self.steps),
            "share_of_time_waiting_for_data": self.share_waited,
        }

    def samples(self) -> dict[str, Sequence[float]]:
        """What a plot shows, in seconds."""
        return {"batch alone": self.data.batches.seconds, "fed step": self.steps, "of it waiting": self.waits}


def benchmark(
    run: RunConfig, *, steps: int = 20, warmup: int = 5, say: Callable[[str], None] = lambda _: None
) -> DataBenchmark:
    """Reads `steps` batches alone, then feeds as many steps. Raises InputError if the run is wrong."""
    run.check()
    mesh = run.mesh.build()
    run.check_batch(mesh)
    say("the data pipeline")
    data, batch = measure(run, steps, warmup)
    say("steps: compiling")
    bare = BareSteps(run, mesh, batch)
    say("steps that read")
    with sharding.layout(mesh, run.rules):
        stream = pipeline.batches(run)
    turns = _fed(bare, stream, warmup + steps)[warmup:]
    return DataBenchmark(
        machine=machine(mesh),
        data=data,
        padded_tokens=round(run.step_tokens()),
        steps=[seconds for seconds, _ in turns],
        waits=[waited for _, waited in turns],
    )


def _fed(bare: BareSteps, stream: Any, steps: int) -> list[tuple[float, float]]:
    """Of each step: its seconds, and those from its end until the batch of the next one was there."""
    turns, batch = [], next(stream)

    def ended(sums: Any) -> float:
        jax.block_until_ready(sums)
        return time.perf_counter()

    with ThreadPoolExecutor(1) as pool:
        for _ in range(steps):
            began = time.perf_counter()
            end = pool.submit(ended, bare.start(batch))
            batch = next(stream)
            there = time.perf_counter()
            done = end.result()
            turns.append((max(done, there) - began, max(there - done, 0.0)))
    return turns


def measure(run: RunConfig, batches: int, warmup: int) -> tuple[Data, Batch]:
    """Reads the first batches that training would; also returns one of them."""
    began = time.perf_counter()
    stream = pipeline.batches(run)
    batch = next(stream)
    first = time.perf_counter() - began
    for _ in range(warmup):
        next(stream)
    ticks = [now()]
    for _ in range(batches):
        next(stream)
        ticks.append(now())
    contents = [_contents(next(stream)) for _ in range(min(batches, 20))]
    tokens, examples = np.mean(contents, axis=0) * jax.process_count()
    return Data(first, Round.between(ticks), float(tokens), float(examples)), batch


def _contents(batch: Batch) -> tuple[int, int]:
    """(tokens, examples) in the rows of a batch."""
    tokens = examples = 0
    for own in rows.by_part(batch).values():
        segments = [value for name, value in own.items() if name.endswith("_segment_ids")]
        tokens += sum(int((value > 0).sum()) for value in segments)
        examples += int(np.max([value.max(axis=1) for value in segments], axis=0).sum())
    return tokens, examples
