"""The decode benchmark writes every token that it counts."""

import numpy as np
import pytest

from pretrain.benchmarks import decode
from pretrain.benchmarks.measuring import Machine
from pretrain.errors import InputError
from pretrain.inference import generate


def test_every_try_writes_all_tokens(run, monkeypatch):
    written = []
    decoded = generate.decoded

    def counted(*arguments):
        tokens = decoded(*arguments)
        written.append(np.count_nonzero(tokens, axis=1).tolist())
        return tokens

    monkeypatch.setattr(generate, "decoded", counted)
    result = decode.benchmark(run, rows=3, prompt=6, tokens=5, tries=2)
    # Each kind once to compile it; no row ends early, with whatever its random model says.
    assert written == [[1, 1, 1]] * 3 + [[5, 5, 5]] * 3
    assert (len(result.one), len(result.all)) == (2, 2)
    assert result.model_bytes > 4 * 10_000


def test_figures():
    machine = Machine("cpu", "cpu", 1, "a processor", 2, "0.10.2", "3.11.7")
    result = decode.DecodeBenchmark(machine, 4, 10, 5, [0.3, 0.2, 0.1], [1.0, 1.0, 1.4], 800)
    figures = result.figures()
    assert figures["prompt_seconds"] == pytest.approx(0.2)
    assert figures["token_seconds"] == pytest.approx(0.2)
    assert figures["tokens_per_second"] == pytest.approx(20)
    assert figures["prompt_tokens_per_second"] == pytest.approx(200)
    assert figures["model_bytes_per_second"] == pytest.approx(4000)


def test_what_has_no_room_is_refused(run):
    with pytest.raises(InputError, match=r"12 and --tokens 5 need targets of 17, but .*{'targets': 16}"):
        decode.benchmark(run, rows=1, prompt=12, tokens=5, tries=1)
