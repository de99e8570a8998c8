"""The data benchmark counts what is read, and what steps wait for."""

import time

import pytest

from pretrain import pipeline
from pretrain.benchmarks import data
from pretrain.benchmarks.measuring import Round


def test_batches_and_their_contents(run):
    result = data.benchmark(run, steps=6, warmup=1)
    assert len(result.data.batches.seconds) == len(result.steps) == len(result.waits) == 6
    assert 8 * 12 * 0.8 < result.data.tokens < 8 * 12 * 1.2  # rows of 16 and of 8
    assert result.padded_tokens == 8 * 16
    assert 0 <= result.share_waited < 1
    figures = result.figures()
    assert figures["data"]["padding"] == pytest.approx(1 - result.data.tokens / 128)
    assert figures["data"]["tokens_per_second"] == pytest.approx(result.data.tokens / result.data.seconds)


def test_steps_wait_for_data_that_are_slow(run, monkeypatch):
    draw = pipeline.Batches.__next__

    def slowly(self):
        time.sleep(0.2)
        return draw(self)

    monkeypatch.setattr(pipeline.Batches, "__next__", slowly)
    result = data.benchmark(run, steps=3, warmup=1)
    assert all(0.1 < waited <= took for waited, took in zip(result.waits, result.steps, strict=True))
    assert result.share_waited > 0.5


def test_a_batch_takes_what_all_take_on_average():
    """What was read ahead comes at once, and the batch after it pays."""
    read = data.Data(1.0, Round([0.0, 0.0, 0.3], 0.2), 30.0, 4.0)
    assert read.seconds == pytest.approx(0.1)
    assert read.figures()["tokens_per_second"] == pytest.approx(300)
    assert read.figures()["tokens_per_cpu_second"] == pytest.approx(150)
