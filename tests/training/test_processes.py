"""Real processes that meet over `jax.distributed` make one run."""

import json
import os
import shutil
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
from pretrain.parallel import processes, sharding
from pretrain.parallel.processes import Place, joined
from pretrain.training import step

ROOT = config.shipped().parent
STEPS = """\
import dataclasses, json, sys
import jax, numpy as np
from pretrain import config, pipeline
from pretrain.errors import InputError
from pretrain.parallel import processes, sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import step

with processes.joined(processes.Place(sys.argv[2], int(sys.argv[4]), int(sys.argv[6]))):
    index = jax.process_index()
    assert processes.on_any(index == 1) and not processes.on_any(False)
    processes.refuse_difference("settings", "equal")
    try:
        processes.refuse_difference("settings", f"of {index}")
        raise AssertionError
    except InputError as error:
        assert "settings of process 1" in str(error)
    run = dataclasses.replace(config.load("run.gin"), mesh=MeshConfig(**SIZES))
    mesh, rows, figures = run.mesh.build(), {}, []
    assert (mesh.size, jax.local_device_count()) == (4, 4 // jax.process_count())
    with sharding.layout(mesh, run.rules):
        share, shares = sharding.local_share(8)
        assert shares == SHARES
        for name, value in np.load("batch.npz").items():
            rows[name] = np.split(value, shares)[share]
        programs = step.programs(run)
        state = programs.init()
        for _ in range(3):
            state, sums = programs.train_step(state, pipeline.to_devices(rows, mesh, run.rules))
            figures.append({name: value.tolist() for name, value in jax.device_get(sums).items()})
    print(json.dumps(figures))
"""


@pytest.mark.parametrize(
    ("count", "sizes", "shares"),
    [
        (2, {"data": 4}, 2),
        pytest.param(2, {"data": 1, "context": 4}, 1, marks=pytest.mark.slow),
        pytest.param(4, {"data": 1, "fsdp": 4}, 4, marks=pytest.mark.slow),
        (4, {"data": 2, "tensor": 2}, 2),
    ],
    ids=str,
)
def test_several_processes_compute_what_one_does(place, token_batch, monkeypatch, count, sizes, shares):
    """The same global batches on 4 devices: equal to rounding, since gloo adds up in another order.

    Where the context lies across them, they feed the same rows, and each device takes its part of the length.
    """
    monkeypatch.chdir(place.directory)
    batch = token_batch("decoder")
    np.savez("batch.npz", **batch)
    program = STEPS.replace("SIZES", repr(sizes)).replace("SHARES", str(shares))
    several = place.launch_several(count, "-c", program, devices=4 // count)
    run = config.load("run.gin")
    mesh = run.mesh.build(jax.devices()[:4])
    with sharding.layout(mesh, run.rules):
        programs = step.programs(run)
        state, alone = programs.init(), []
        for _ in range(3):
            state, sums = programs.train_step(state, pipeline.to_devices(batch, mesh, run.rules))
            alone.append(jax.device_get(sums))
    first, *others = place.ended(*several)
    assert [first[0], *(each[0] for each in others)] == [0] * count, (first, others)
    assert {each[1] for each in others} == {""}
    for one, two in zip(alone, json.loads(first[1]), strict=True):
        assert one.keys() == two.keys()
        assert one["batch_hash"].tolist() == two["batch_hash"]
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)


TRAIN = ("-m", "pretrain.cli.main", "train", "run.gin", "--model-dir")


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_both_go_on(place):
    words = (*TRAIN, "killed", "--gin.steps=100000", "--gin.log_period=100", "--heartbeat-timeout=15")
    processes = place.launch_several(2, *words)
    while not any(line["step"] >= 4 for line in place.lines("killed", "ledger")):
        assert all(process.poll() is None for process in processes), place.ended(*processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    first, second = place.ended(*processes, seconds=40)
    assert first[0] != 0 and second[0] == -signal.SIGKILL
    before = len(place.lines("killed", "ledger"))

    processes = place.launch_several(2, *words)
    while len(place.lines("killed", "ledger")) <= before + 4:
        assert all(process.poll() is None for process in processes), place.ended(*processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
    place.ended(*processes)
    steps = [line["step"] for line in place.lines("killed", "ledger")]
    assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.slow
def test_damage_that_one_process_meets_sends_all_back(place):
    words = (*TRAIN, "cut", "--gin.steps=12", "--gin.checkpoint_period=4")
    whole = place.ended(*place.launch_several(2, *words))
    assert [code for code, _, _ in whole] == [0, 0], whole
    ledger = place.lines("cut", "ledger")
    checkpoints = place.directory / "cut/checkpoints"
    shutil.rmtree(checkpoints / "12")
    path = checkpoints / "8/data/iterator_00001_of_00002.json"
    path.write_text(path.read_text()[:-5])
    again = place.ended(*place.launch_several(2, *words))
    assert [code for code, _, _ in again] == [0, 0], again
    assert "(another process cannot read it)" in again[0][1] and "going on from step 4" in again[0][1]
    assert (place.directory / "cut/damaged/8").is_dir()
    assert place.lines("cut", "ledger") == ledger


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(place):
    one, other = (f"--gin.seed={seed}" for seed in (1, 2))
    meeting = ("--coordinator", f"localhost:{place.free_port()}", "--processes", "2", "--process")
    processes = [
        place.launch(*TRAIN, "differ", *meeting, str(index), seed) for index, seed in enumerate((one, other))
    ]
    for code, _, err in place.ended(*processes):
        assert code == 2, err
    assert not (place.directory / "differ/config.gin").exists()


IMPATIENT = """\
from pretrain.cli import main
from pretrain.training import loop

loop.VISIBLE = 1.0
main.main()
"""


@pytest.mark.slow
def test_a_model_dir_of_each_process_is_refused(place):
    meeting = ("--coordinator", f"localhost:{place.free_port()}", "--processes", "2", "--process")
    processes = [
        place.launch("-c", IMPATIENT, "train", "run.gin", "--model-dir", f"own{index}", *meeting, str(index))
        for index in range(2)
    ]
    for code, _, err in place.ended(*processes):
        assert code == 2, err
        assert "is not the same directory for all processes" in err


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
    results = place.ended(*place.launch_several(2, "-c", FAILS.replace("{fails}", str(fails))), seconds=40)
    assert results[fails][0] == 2, results
    assert "InputError: not good" in results[fails][2]
    assert results[1 - fails][0] != 0


CLUSTER = """\
import jax
from jax.experimental import multihost_utils
from pretrain.parallel import processes

with processes.joined(processes.Cluster()):
    print(jax.process_count(), multihost_utils.process_allgather(jax.process_index()).tolist())
"""


def test_slurm_says_where_the_processes_meet(place, monkeypatch):
    """By its variables, as JAX reads them: the port follows from the number of the job."""
    job = next(job for job in range(4096) if not processes._is_taken(61440 + job))
    for name, value in {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    tasks = []
    for index in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(index))
        monkeypatch.setenv("SLURM_LOCALID", str(index))
        tasks.append(place.launch("-c", CLUSTER))
    first, second = place.ended(*tasks)
    assert [first[0], second[0]] == [0, 0], (first, second)
    assert (first[1], second[1]) == ("2 [0, 1]\n", "")


def launched(place, *words):
    script = ROOT / "scripts" / "launch" / "local.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(place.directory / "tfds")}
    return subprocess.run(
        [script, "2", "train", "run.gin", "--model-dir", *words],
        cwd=place.directory,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **here, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
    )


def test_the_script_starts_several_processes_of_one_run(place):
    done = launched(place, "both", "--gin.steps=4")
    assert done.returncode == 0, done
    started = [line for line in place.lines("both", "metrics") if line.get("event") == "started"]
    assert [line["processes"] for line in started] == [2]
    assert done.stdout.count("Done: step 4.") == 1
    refused = launched(place, "none", "--gin.stepss=4")
    assert refused.returncode == 2 and "stepss" in refused.stderr


def test_a_cluster_that_is_none_is_refused(place):
    ((code, out, err),) = place.ended(place.launch(*TRAIN, "none", "--cluster"))
    assert (code, out) == (2, "") and "the environment says nothing of a TPU pod, Slurm or Open MPI" in err
    ((code, out, err),) = place.ended(place.launch(*TRAIN, "none", "--cluster", "--processes", "2"))
    assert code == 2 and "leave --coordinator and the others away" in err
    assert not (place.directory / "none").exists()


@pytest.mark.parametrize(
    ("process", "said"), [("1", "process 0, which does not answer at"), ("0", "all 2 processes to come to")]
)
def test_who_does_not_come_is_named(place, process, said):
    words = ("--processes", "2", "--process", process, "--initialization-timeout", "1")
    port = place.free_port()
    alone = place.launch(*TRAIN, "none", "--coordinator", f"localhost:{port}", *words)
    ((code, out, err),) = place.ended(alone, seconds=40)
    assert (code, out) == (2, "")
    assert err.startswith(f"pretrain: Process {process} waited 1 seconds for {said}"), err
    assert err.count("\n") == 1, err
    assert not (place.directory / "none").exists()


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
        ((code, _, err),) = place.ended(place.launch(*TRAIN, "none", *meeting), seconds=40)
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
    ((code, _, err),) = place.ended(place.launch(*TRAIN, "none", "--processes", "2"))
    assert code == 2
    assert err == (
        "pretrain: --coordinator, --processes and --process go together: "
        "give each process all three, or none.\n"
    )


def test_one_process_is_left_alone():
    out = sys.stdout
    with joined(None):
        assert sys.stdout is out
