"""`pretrain benchmark train` prints and writes the same figures, and refuses before it measures."""

import json

import pytest
from click.testing import CliRunner

from pretrain import benchmarking
from pretrain.benchmarking import Data, Machine, Memory, Round, TrainBenchmark
from pretrain.cli.main import cli
from pretrain.errors import InputError

RESULT = TrainBenchmark(
    machine=Machine("gpu", "NVIDIA H100", 8, "a processor", 16, "0.10.2", "3.11.7"),
    parameters=1_670_000,
    compile_seconds=12.34,
    bare=[Round([0.1, 0.1, 0.2], 0.03)],
    loop=[Round([0.102, 0.102, 0.3], 0.06)],
    data=Data(2.0, 0.005, 5000.0, 16.0),
    padded_tokens=5120,
    flops=4e12,
    peak_flops=1e14,
    memory=Memory(3 * 10**9, "device"),
)


@pytest.fixture
def measured(monkeypatch):
    asked = []

    def train(run, **options):
        asked.append((run, options))
        return RESULT

    monkeypatch.setattr(benchmarking, "train", train)
    return asked


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["benchmark", "train", *arguments], catch_exceptions=False)


def test_the_table_and_the_file_say_what_was_measured(measured, tmp_path):
    file = tmp_path / "out.json"
    flags = ["--steps=8", "--warmup=2", f"--json={file}", "--gin.BATCH_SIZE=32"]
    answer = invoke("runs/quickstart.gin", *flags)
    assert answer.exit_code == 0
    ((run, options),) = measured
    assert (run.batch_size, options["steps"], options["warmup"]) == (32, 8, 2)
    shown = " ".join(answer.output.split())
    for text in (
        "8 x NVIDIA H100", "1.67 M parameters", "4.00 TFLOP a step", "12.3 s", "3.00 GB of a device",
        "5.00 ms a batch, 5.0% of a bare step", "median 100.0 102.0", "least 100.0 102.0", "most 200.0 300.0",
        "tokens/s 50.0 k 49.0 k", "with padding 51.2 k 50.2 k", "FLOP/s 40.0 T 39.2 T", "MFU 40.0% 39.2%",
        "the loop adds 2.0% to a step",
    ):  # fmt: skip
        assert text in shown
    written = json.loads(file.read_text())
    assert written["run"] == "runs/quickstart.gin" and written["settings"] == ["--gin.BATCH_SIZE=32"]
    assert written["loop_overhead"] == pytest.approx(0.02)
    assert written["step"]["tokens_per_second"] == pytest.approx(50_000)
    assert written["peak_memory"] == {"bytes": 3 * 10**9, "of": "device"}


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(measured, tmp_path):
    with pytest.raises(InputError, match="nowhere is no directory to write to"):
        invoke("runs/quickstart.gin", f"--json={tmp_path}/nowhere/out.json")
    assert not measured


def test_wrong_flags_are_refused(measured):
    assert invoke("runs/quickstart.gin", "--steps=0").exit_code == 2
    with pytest.raises(InputError, match="nonsense"):
        invoke("runs/quickstart.gin", "--nonsense")
    assert not measured
