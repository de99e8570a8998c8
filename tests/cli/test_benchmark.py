"""`pretrain benchmark train` prints and writes the same figures, and refuses before it measures."""

import json

import pytest
from click.testing import CliRunner

from pretrain.benchmarks import data, decode, plot, train
from pretrain.benchmarks.data import Data, DataBenchmark
from pretrain.benchmarks.decode import DecodeBenchmark
from pretrain.benchmarks.measuring import Machine, Memory, Round
from pretrain.benchmarks.train import TrainBenchmark
from pretrain.cli.main import cli
from pretrain.errors import InputError

RESULT = TrainBenchmark(
    machine=Machine("gpu", "NVIDIA H100", 8, "a processor", 16, "0.10.2", "3.11.7"),
    parameters=1_670_000,
    compile_seconds=12.34,
    bare=[Round([0.1, 0.1, 0.2], 0.03)],
    loop=[Round([0.102, 0.102, 0.3], 0.06)],
    data=Data(2.0, Round([0.004, 0.006], 0.01), 5000.0, 16.0),
    padded_tokens=5120,
    flops=4e12,
    peak_flops=1e14,
    memory=Memory(3 * 10**9, "device"),
)


@pytest.fixture
def measured(monkeypatch):
    asked = []

    def benchmark(run, **options):
        asked.append((run, options))
        return RESULT

    monkeypatch.setattr(train, "benchmark", benchmark)
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


def test_the_data_of_a_run(monkeypatch, tmp_path):
    measured = DataBenchmark(RESULT.machine, RESULT.data, 10_000, [0.1, 0.3], [0.0, 0.1])
    monkeypatch.setattr(data, "benchmark", lambda run, **options: measured)
    answer = CliRunner().invoke(
        cli,
        ["benchmark", "data", "runs/quickstart.gin", f"--json={tmp_path}/out.json"],
        catch_exceptions=False,
    )
    shown = " ".join(answer.output.split())
    for text in (
        "5.00 k tokens in 16.0 examples, 50.0% of it padding",
        "5.00 ms a batch, 1.00 M tokens/s (500 k a CPU second); first after 2.0 s",
        "200.0 ms, of which they wait for data 25.0%",
    ):
        assert text in shown
    assert json.loads((tmp_path / "out.json").read_text())["share_of_time_waiting_for_data"] == 0.25


def test_decoding_and_its_plot(monkeypatch, tmp_path):
    measured = DecodeBenchmark(RESULT.machine, 4, 10, 5, [0.2], [1.0], 8 * 10**8)
    drawn = []
    monkeypatch.setattr(decode, "benchmark", lambda run, **options: measured)
    monkeypatch.setattr(plot, "check", lambda: None)
    monkeypatch.setattr(plot, "write", lambda *arguments: drawn.append(arguments))
    arguments = ["runs/quickstart.gin", f"--plot={tmp_path}/out.png", "--gin.SEED=1"]
    answer = CliRunner().invoke(cli, ["benchmark", "decode", *arguments], catch_exceptions=False)
    shown = " ".join(answer.output.split())
    for text in (
        "4 x 10 tokens: 200.0 ms until the first token, 200 tokens/s", "200.00 ms each after it, 20 tokens/s",
        "the parameters are read at 4.00 GB/s",
    ):  # fmt: skip
        assert text in shown
    assert drawn == [
        (tmp_path / "out.png", "runs/quickstart.gin --gin.SEED=1", {"one token": [0.2], "5 tokens": [1.0]})
    ]
