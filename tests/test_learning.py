"""Every objective learns: a minute or two on real text, then below the unigram entropy of held-out text."""

import json
import os
import subprocess
import sys

import pytest

BRIEF = {"STEPS": 90, "eval_batches": 20, "log_period": 30}


def pretrain(*arguments: str) -> str:
    """Runs the command in a process of its own, compiled as users' runs are."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "pretrain.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "run_file",
    [
        "runs/quickstart.gin",
        pytest.param("runs/quickstart_causal_lm.gin", marks=pytest.mark.slow),
        pytest.param("runs/quickstart_prefix_lm.gin", marks=pytest.mark.slow),
        pytest.param("runs/quickstart_prefix_lm_encoder_decoder.gin", marks=pytest.mark.slow),
        pytest.param("runs/bert_tiny.gin", marks=pytest.mark.slow),
        pytest.param("runs/xlnet_tiny.gin", marks=pytest.mark.slow),
        pytest.param("runs/code_infilling_tiny.gin", marks=pytest.mark.slow),
        pytest.param("runs/multi_objective_tiny.gin", marks=pytest.mark.slow),
    ],
)
def test_learns_more_than_the_frequencies_of_bytes(run_file, tmp_path):
    settings = [f"--gin.{name}={value}" for name, value in BRIEF.items()]
    pretrain("train", run_file, "--model-dir", str(tmp_path / "run"), *settings)
    figures = json.loads(pretrain("evaluate", str(tmp_path / "run"), "--json"))
    assert figures["bits_per_byte"] < figures["unigram_bits_per_byte"] - 0.2, figures
    assert figures["bigram_bits_per_byte"] < figures["unigram_bits_per_byte"]
