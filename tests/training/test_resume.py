"""A run that was killed and one that was not are the same run, bit for bit.

Real processes, real SIGKILL. Compared: every batch's hash, every figure, every parameter and optimizer leaf.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS = 24
SMALL = {
    "encoder_decoder": "encoder_decoder.EncoderDecoderConfig",
    "decoder": "decoder.DecoderConfig",
    "encoder": "encoder.EncoderConfig",
    "two_stream": "two_stream.TwoStreamConfig",
    "dual_encoder": "dual_encoder.DualEncoderConfig",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A few hundred short documents, so that the shuffle buffer and packing both have something to do."""
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    lines = (" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(400))
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines))
    return path


def command(run_file: str, family: str, corpus: Path, model_dir: Path, *extra: str) -> list[str]:
    model = SMALL[family]
    settings = {
        "FILES": f"'{corpus}'", "STEPS": STEPS, "BATCH_SIZE": 4, "shuffle_buffer": 50,
        "pack": family != "dual_encoder",
        "checkpoint_period": 6, "eval_period": 12, "eval_batches": 2, "log_period": 4,
        "text_files.task.validation_fraction": 0.1,
        f"{model}.embed_dim": 16, f"{model}.mlp_dim": 32, f"{model}.head_dim": 8, f"{model}.dropout": 0.1,
    }  # fmt: skip
    flags = [f"--gin.{name}={value}" for name, value in settings.items()]
    program = [sys.executable, "-m", "pretrain.cli.main", "train", run_file]
    return [*program, "--model-dir", str(model_dir), *flags, *extra]


def environment(tmp_path: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**plain, "TFDS_DATA_DIR": str(tmp_path / "tfds"), "JAX_PLATFORMS": "cpu"}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_at(arguments: list[str], env: dict[str, str], ledger: Path, step: int) -> None:
    """Starts the run and kills it, with no warning, once it has written the ledger line of `step`."""
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not any(line["step"] >= step for line in lines(ledger)):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def arrays(model_dir: Path) -> dict[str, np.ndarray]:
    restored = ocp.PyTreeCheckpointer().restore(model_dir.resolve() / "checkpoints" / str(STEPS) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def timeless(figures: list[dict]) -> list[dict]:
    """Metrics without what depends on the clock or on having been restarted."""
    clock = ("tokens_per_second", "steps_per_second", "model_flops_per_second", "model_flops_utilisation")
    kept = [line for line in figures if line["kind"] != "event"]
    return [{name: value for name, value in line.items() if name not in clock} for line in kept]


def check_killed_equals_straight(run_file: str, family: str, corpus: Path, tmp_path: Path, kills: list[int]):
    env = environment(tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(run_file, family, corpus, straight), env=env, check=True, capture_output=True)
    arguments = command(run_file, family, corpus, killed)
    for step in kills:
        kill_at(arguments, env, killed / "ledger.jsonl", step)
    subprocess.run(arguments, env=env, check=True, capture_output=True)

    assert [line["step"] for line in lines(killed / "ledger.jsonl")] == list(range(1, STEPS + 1))
    assert lines(straight / "ledger.jsonl") == lines(killed / "ledger.jsonl")
    hashes = [line["batch_hash"] for line in lines(straight / "ledger.jsonl")]
    assert len(set(hashes)) == STEPS  # no batch came twice
    assert timeless(lines(straight / "metrics.jsonl")) == timeless(lines(killed / "metrics.jsonl"))
    one, two = arrays(straight), arrays(killed)
    assert one.keys() == two.keys() and len(one) > 30
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    # Run once more: complete, nothing touched.
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()}
    again = subprocess.run(arguments, env=env, check=True, capture_output=True, text=True)
    assert "complete" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_span_corruption_resumes_bit_for_bit(corpus, tmp_path):
    check_killed_equals_straight("runs/text_files.gin", "encoder_decoder", corpus, tmp_path, [3, 13])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_file", "family"),
    [
        ("runs/text_files_causal_lm.gin", "decoder"),
        ("runs/text_files_prefix_lm.gin", "decoder"),
        ("runs/text_files_prefix_lm_encoder_decoder.gin", "encoder_decoder"),
        ("runs/text_files_masked_lm.gin", "encoder"),
        ("runs/text_files_permutation_lm.gin", "two_stream"),
        ("runs/text_files_denoising.gin", "encoder_decoder"),
        ("runs/text_files_ul2.gin", "encoder_decoder"),
        ("runs/text_files_fill_in_the_middle.gin", "decoder"),
        ("runs/text_files_contrastive.gin", "dual_encoder"),
    ],
)
def test_every_objective_resumes_bit_for_bit(run_file, family, corpus, tmp_path):
    check_killed_equals_straight(run_file, family, corpus, tmp_path, [8, 17])
