"""A disk that is full or cannot be written: a clear end, and a run that goes on when there is room again.

Needs a small file system of its own (tmpfs), which only root may mount.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.usefixtures("own_directory"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a tmpfs"),
]


def mount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount(path, "size=1500k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs here: {error}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_ends_the_run_and_loses_no_checkpoint(call, text, small_disk):
    model_dir = small_disk / "model"
    arguments = ["train", "causal.gin", "--model-dir", model_dir, f"--gin.FILES='{text}'"]
    settings = {"STEPS": 12, "checkpoint_period": 1, "keep_checkpoints": 100, "batch_size": 8}
    # As a program: in this process pytest keeps from stderr what libraries log.
    flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    program = [sys.executable, "-m", "pretrain.cli.main", *arguments, *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    full = subprocess.run(program, capture_output=True, text=True, env=environment)
    said = [line for line in full.stderr.splitlines() if not re.match(r"[WIE]\d{4} |WARNING: All log", line)]
    assert full.returncode == 1, full
    assert len(said) == 1 and said[0].startswith("pretrain: "), full.stderr
    assert "make room or mend the disk" in said[0]
    kept = sorted(int(path.name) for path in (model_dir / "checkpoints").iterdir() if path.name.isdigit())
    assert 1 <= len(kept) < 12
    assert f"of step {kept[-1]}, is kept" in said[0]
    mount(small_disk, "remount,size=50m")
    again = call(*arguments, settings=settings)
    assert again.code == 0, again
    assert not (model_dir / "damaged").exists()


def test_a_model_dir_that_cannot_be_written_is_refused(call, causal, small_disk):
    mount(small_disk, "remount,size=50m")
    shutil.copytree(causal, small_disk / "model")
    mount(small_disk, "remount,ro")
    files = f"--gin.FILES='{causal.parent / 'text.txt'}'"
    refused = call("train", "causal.gin", "--model-dir", small_disk / "model", files, "--gin.STEPS=3",
                   "--allow-config-change")  # fmt: skip
    refused.is_refused("model cannot be written (Read-only file system)")
