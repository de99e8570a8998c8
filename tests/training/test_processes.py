"""Real processes that meet over `jax.distributed` make one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pretrain import config, pipeline
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.processes import Place, joined
from pretrain.training import step

ROOT = config.shipped().parent
RUN = """\
from __gin__ import dynamic_registration
from pretrain import optim
from pretrain import run
from pretrain.models import decoder
from pretrain.objectives import causal_lm
from tasks import text_files

include 'models/decoder_tiny.gin'

run.RunConfig:
  task = @text_files.task()
  objective = @causal_lm.CausalLM()
  model = @decoder.DecoderConfig()
  optimizer = @optim.AdamW()
  lengths = {'targets': 16}
  steps = 8
  batch_size = 8
  shuffle_buffer = 10
  eval_period = 4
  eval_batches = 1
  checkpoint_period = 3
  log_period = 1

optim.AdamW.schedule = @optim.Constant()
optim.Constant.peak = 1e-2

text_files.task:
  files = 'text.txt'
  validation_fraction = 0.1

decoder.DecoderConfig:
  embed_dim = 16
  mlp_dim = 16
  head_dim = 4
  num_layers = 1
  dropout = 0.1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a run file, its text, and what the tests' processes share."""
    directory = tmp_path_factory.mktemp("processes")
    (directory / "run.gin").write_text(RUN)
    (directory / "text.txt").write_text("\n".join(f"document {n} of some length" for n in range(200)))
    return directory


def environment(place: Path, devices: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TFDS_DATA_DIR": str(place / "tfds"),
    }


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("", 0))
        return any_port.getsockname()[1]


def launch(place: Path, *words: str, devices: int = 2) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=place,
        env=environment(place, devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch_two(place: Path, *words: str) -> list[subprocess.Popen]:
    """Two processes of one run, as its flags say to each."""
    meeting = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    return [launch(place, *words, *meeting, str(index)) for index in range(2)]


def ended(*processes: subprocess.Popen, seconds: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none is left running."""
    try:
        results = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *result) for process, result in zip(processes, results, strict=True)]


STEPS = """\
import json, sys
import jax, numpy as np
from pretrain import config, pipeline
from pretrain.errors import InputError
from pretrain.parallel import processes, sharding
from pretrain.training import step

with processes.joined(processes.Place(sys.argv[2], 2, int(sys.argv[6]))):
    index = jax.process_index()
    assert processes.on_any(index == 1) and not processes.on_any(False)
    processes.refuse_difference("settings", "equal")
    try:
        processes.refuse_difference("settings", f"of {index}")
        raise AssertionError
    except InputError as error:
        assert "settings of process 1" in str(error)
    run = config.load("run.gin")
    mesh, rows, figures = run.mesh.build(), {}, []
    assert (mesh.size, jax.local_device_count()) == (4, 2)
    for name, value in np.load("batch.npz").items():
        rows[name] = np.split(value, 2)[index]
    with sharding.layout(mesh, run.rules):
        programs = step.programs(run)
        state = programs.init()
        for _ in range(3):
            state, sums = programs.train_step(state, pipeline.to_devices(rows, mesh, run.rules))
            figures.append({name: value.tolist() for name, value in jax.device_get(sums).items()})
    print(json.dumps(figures))
"""


def test_two_processes_compute_what_one_does(place, token_batch, monkeypatch):
    """The same global batches on 4 devices: equal to rounding, since gloo adds up in another order."""
    monkeypatch.chdir(place)
    batch = token_batch("decoder")
    np.savez("batch.npz", **batch)
    processes = launch_two(place, "-c", STEPS)
    run = config.load("run.gin")
    mesh = run.mesh.build(jax.devices()[:4])
    with sharding.layout(mesh, run.rules):
        programs = step.programs(run)
        state, alone = programs.init(), []
        for _ in range(3):
            state, sums = programs.train_step(state, pipeline.to_devices(batch, mesh, run.rules))
            alone.append(jax.device_get(sums))
    first, second = ended(*processes)
    assert [first[0], second[0]] == [0, 0], (first, second)
    assert second[1] == ""
    for one, two in zip(alone, json.loads(first[1]), strict=True):
        assert one.keys() == two.keys()
        assert one["batch_hash"].tolist() == two["batch_hash"]
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)


TRAIN = ("-m", "pretrain.cli.main", "train", "run.gin", "--model-dir")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_train_as_two_processes(place):
    """The whole command: one ledger, one console, a data position of each process; a new launch resumes."""
    first, second = ended(*launch_two(place, *TRAIN, "two"))
    assert first[0] == second[0] == 0, (first, second)
    assert first[1].count("checkpoint\n") == 3
    assert "[Gloo]" not in first[1] + first[2]
    assert second[1:] == ("", "")
    assert [line["step"] for line in lines(place / "two/ledger.jsonl")] == list(range(1, 9))
    (started,) = [line for line in lines(place / "two/metrics.jsonl") if line.get("event") == "started"]
    assert started["processes"] == 2
    positions = {path.name for path in (place / "two/checkpoints/8/data").glob("*.json")}
    assert positions == {"iterator_00000_of_00002.json", "iterator_00001_of_00002.json"}


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_both_go_on(place):
    processes = launch_two(place, *TRAIN, "killed", "--gin.steps=100000", "--gin.log_period=100")
    while not any(line["step"] >= 4 for line in lines(place / "killed/ledger.jsonl")):
        assert all(process.poll() is None for process in processes), ended(*processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    first, second = ended(*processes, seconds=40)
    assert first[0] != 0 and second[0] == -signal.SIGKILL
    before = len(lines(place / "killed/ledger.jsonl"))

    processes = launch_two(place, *TRAIN, "killed", "--gin.steps=100000", "--gin.log_period=100")
    while len(lines(place / "killed/ledger.jsonl")) <= before + 4:
        assert all(process.poll() is None for process in processes), ended(*processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(*processes, seconds=40)
    assert first[0] == second[0] == 0, (first, second)
    assert "Stopped and saved" in first[1]
    steps = [line["step"] for line in lines(place / "killed/ledger.jsonl")]
    assert steps == list(range(1, steps[-1] + 1))


FAILS = """\
import sys
from jax.experimental import multihost_utils
from pretrain.errors import InputError
from pretrain.parallel import processes

processes.FAREWELL = 1.0
with processes.joined(processes.Place(sys.argv[2], 2, int(sys.argv[6]))):
    processes.sync("all are here")
    if sys.argv[6] == "{fails}":
        raise InputError("not good")
    processes.sync("which nobody will be")
"""


@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_fails_alone_ends_and_so_does_the_other(place, fails):
    results = ended(*launch_two(place, "-c", FAILS.replace("{fails}", str(fails))), seconds=40)
    assert results[fails][0] == 2, results
    assert "InputError: not good" in results[fails][2]
    assert results[1 - fails][0] != 0


@pytest.mark.parametrize(
    ("process", "said"), [("1", "process 0, which does not answer at"), ("0", "all 2 processes to come to")]
)
def test_who_does_not_come_is_named(place, process, said):
    words = ("--processes", "2", "--process", process, "--initialization-timeout", "1")
    port = free_port()
    alone = launch(place, *TRAIN, "none", "--coordinator", f"localhost:{port}", *words)
    ((code, out, err),) = ended(alone, seconds=40)
    assert (code, out) == (2, "")
    assert err.startswith(f"pretrain: Process {process} waited 1 seconds for {said}"), err
    assert err.count("\n") == 1, err
    assert not (place / "none").exists()


def test_a_port_that_is_taken_is_named(place):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        meeting = (
            "--coordinator",
            f"localhost:{taken.getsockname()[1]}",
            "--processes",
            "2",
            "--process",
            "0",
        )
        ((code, _, err),) = ended(launch(place, *TRAIN, "none", *meeting), seconds=40)
    assert code == 2
    assert "another program is at that port" in err


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "said"),
    [
        ("localhost", 2, 0, "HOST:PORT"),
        ("localhost:0", 2, 0, "HOST:PORT"),
        (":8476", 2, 0, "HOST:PORT"),
        ("localhost:8476", 2, 2, "number them from 0 to 1"),
    ],
)
def test_places_that_are_none(coordinator, count, index, said):
    with pytest.raises(InputError, match=said):
        Place(coordinator, count, index)


def test_the_three_flags_go_together(place):
    ((code, _, err),) = ended(launch(place, *TRAIN, "none", "--processes", "2"))
    assert code == 2
    assert err == (
        "pretrain: --coordinator, --processes and --process go together: "
        "give each process all three, or none.\n"
    )


def test_one_process_is_left_alone():
    out = sys.stdout
    with joined(None):
        assert sys.stdout is out
