"""A benchmark times the real loop and the real step, and its figures are what they say."""

import dataclasses
import time
from pathlib import Path

import jax
import pytest

from pretrain import evaluation
from pretrain.benchmarks import train
from pretrain.benchmarks.data import Data
from pretrain.benchmarks.measuring import Machine, Memory, Round
from pretrain.benchmarks.train import TrainBenchmark
from pretrain.errors import InputError
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import loop, records


def test_both_kinds_of_steps_are_timed_in_turns(run, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("evaluated"))
    hashed = []

    def slow_ledger(self, step, batch, batch_hash, bad):
        time.sleep(0.1)
        hashed.append(batch_hash)

    monkeypatch.setattr(records.Records, "ledger", slow_ledger)
    said: list[str] = []
    result = train.benchmark(run, steps=6, warmup=1, say=said.append)

    assert [len(part.seconds) for part in (*result.bare, *result.loop)] == [2] * 8
    # A round is a step that starts the clock, one of warm-up, and two timed ones, each on data of its own.
    # (The line of a step is written after the next one began, so the last has none.)
    assert len(hashed) == len(set(hashed)) == 4 * train.ROUNDS - 1
    compiling = said.index("the loop: compiling")
    assert said[compiling + 1 :: 2] == [f"the bare step: round {n} of 4" for n in range(1, 5)]
    # What the loop does besides the step is in its time, and in nothing else's.
    bare, inside = result.speed(result.bare), result.speed(result.loop)
    assert bare["seconds"] < 0.1 <= inside["min_seconds"]
    assert result.compile_seconds > 0.1
    assert result.flops == 3 * 8 * run.model.flops(run.lengths)
    assert result.padded_tokens == 8 * 16
    assert result.peak_flops == 1e9
    assert result.parameters > 10_000 and result.memory.of == "process"
    assert 8 * 12 * 0.8 < result.data.tokens < 8 * 12 * 1.2  # rows of 16 and of 8
    assert result.data.examples == 8


def test_on_an_accelerator_the_bare_rounds_come_first_and_give_their_memory_back(run, monkeypatch):
    def states():
        return [array for array in jax.live_arrays() if array.shape == (384, 32)]

    class Loop:
        def __init__(self, *_):
            self.facts = loop.describe(run, Path(), 0, 1, run.mesh.build())
            self.rounds = []

        def measure(self, run):
            measured.append(len(states()))

    measured: list[int] = []
    before = len(states())
    monkeypatch.setattr(train, "_speed_drifts", lambda mesh: False)
    monkeypatch.setattr(train, "_LoopRounds", Loop)
    result = train.benchmark(run, steps=4, warmup=1)
    assert [len(part.seconds) for part in result.bare] == [1] * 4
    assert measured == [before]


def test_what_cannot_be_run_is_refused(run):
    with pytest.raises(InputError, match="multiple of 8"):
        train.benchmark(dataclasses.replace(run, batch_size=4, mesh=MeshConfig()))


def test_a_round_is_what_passes_between_ticks():
    part = Round.between([(10.0, 5.0), (10.5, 5.5), (12.0, 8.0)])
    assert part == Round([0.5, 1.5], 1.5)


def result(**changes) -> TrainBenchmark:
    figures = {
        "machine": Machine("cpu", "cpu", 1, "a processor", 2, "0.10.2", "3.11.7"),
        "parameters": 1_000_000,
        "compile_seconds": 3.0,
        "bare": [Round([1.0, 2.0, 9.0], 2.0), Round([2.0, 2.0, 2.0], 4.0)],
        "loop": [Round([2.2, 2.2, 2.2], 3.0), Round([2.0, 2.0, 9.0], 3.6)],
        "data": Data(1.0, Round([0.1, 0.1], 0.2), 300.0, 8.0),
        "padded_tokens": 400,
        "flops": 1e12,
        "peak_flops": 2e12,
        "memory": Memory(10**9, "process"),
    }
    return TrainBenchmark(**{**figures, **changes})


def test_figures():
    assert result().speed(result().bare) == {
        "seconds": 2.0,
        "min_seconds": 1.0,
        "max_seconds": 9.0,
        "cpu_seconds": 3.0,
        "tokens_per_second": 150.0,
        "padded_tokens_per_second": 200.0,
        "examples_per_second": 4.0,
        "model_flops_per_second": 5e11,
        "model_flops_utilisation": 0.25,
    }
    assert result().overheads == pytest.approx([0.1, 0.0])
    assert result().overhead == pytest.approx(0.05)
    assert result().cpu_overhead == pytest.approx(0.1)
    assert result().figures()["data"]["share_of_step"] == pytest.approx(0.05)
    assert "model_flops_utilisation" not in result(peak_flops=None).figures()["step"]
