"""What the script that times peers reckons, and that our side of it answers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def peers():
    place = ROOT / "scripts" / "benchmark_peers.py"
    spec = importlib.util.spec_from_file_location("benchmark_peers", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_ratio_is_that_of_a_round(peers):
    """The machine was half as fast in the second round: the ratios do not change."""
    ours = peers.Program("ours", None, None, 10, 1.0, 6e9, [1.0, 2.0, 1.0])
    other = peers.Program("other", None, None, 10, 1.0, None, [1.5, 3.0, 1.2])
    shape = peers.SHAPES["decoder"]
    ceiling = peers.Program(peers.PRODUCT, None, None, 0, 0.1, 2e9, [0.1, 0.2, 0.1])
    first, second, third = peers.figures(shape, [ours, other, ceiling])
    assert (first["ratio"], first["tokens_per_second"]) == (1.0, shape.tokens / 1.0)
    assert (second["ratio"], second["least_ratio"], second["most_ratio"]) == (1.5, 1.2, 1.5)
    assert second["flops_per_second"] == 6e9 / 1.5
    assert third == {"name": peers.PRODUCT, "flops_per_second": 2e10}


def test_a_program_that_dies_is_named(peers, tmp_path):
    script = "import sys; input(); sys.exit('no memory')"
    with (tmp_path / "log").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        )  # fmt: skip
    program = peers.Program("HF T5", process, tmp_path / "log", 10, 1.0, None)
    with pytest.raises(SystemExit, match="HF T5 ended before its time; the last it said:\nno memory"):
        program.run(2)
    with pytest.raises(SystemExit, match="HF T5 ended"):
        program.run(2)


def test_a_directory_of_something_else_is_left_alone(peers, tmp_path):
    (tmp_path / "precious").write_text("yes")
    (tmp_path / "pyvenv.cfg").write_text("an environment of somebody else's")
    with pytest.raises(SystemExit, match="not one that this script has made: give another --env"):
        peers.made_environment(tmp_path)
    assert (tmp_path / "precious").read_text() == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_our_side_answers_as_often_as_it_is_asked(family):
    script = ROOT / "scripts" / "peers" / "ours.py"
    done = subprocess.run(
        [sys.executable, script, family, 'attention="rows"'],
        input="1\n2\n", capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    facts, *answers = map(json.loads, done.stdout.splitlines())
    assert facts["parameters"] == {"encoder_decoder": 30_420_352, "decoder": 34_087_424}[family]
    assert facts["flops"] == pytest.approx(
        {"encoder_decoder": 4.03e11, "decoder": 8.375e11}[family], rel=1e-3
    )
    assert [len(answer["seconds"]) for answer in answers] == [1, 2]


@pytest.mark.slow
def test_the_data_pipelines_are_timed_side_by_side(tmp_path):
    script, found = ROOT / "scripts" / "benchmark_data.py", tmp_path / "found.json"
    subprocess.run(
        [sys.executable, script, "--rounds", "1", "--batches", "1", "--json", found], check=True, timeout=600
    )
    figures = json.loads(found.read_text())
    assert list(figures) == ["pretrain", "seqio + t5", "seqio + t5, untuned as ours"]
    assert figures["pretrain"]["ratios"] == [1.0]
    assert all(each["tokens_per_second"] > 0 and len(each["ratios"]) == 1 for each in figures.values())
