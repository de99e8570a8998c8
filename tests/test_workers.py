"""Processes share the jobs, say what went wrong, and never outlive the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pretrain
from pretrain import workers
from pretrain.errors import InputError

# A module of its own, because a fresh process has to import it.
HELPERS = """\
import os, signal, time
from pathlib import Path

from pretrain.errors import InputError


def start():
    os.environ["STARTED"] = str(int(os.environ.get("STARTED", 0)) + 1)
    return work


def work(job, report):
    report((job, os.getpid(), os.environ["STARTED"]))
    done = Path(__file__).with_name("done")
    deadline = time.monotonic() + 30
    while job == "long" and not done.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if job == "last":
        done.touch()
    if job == "refuse":
        raise InputError("The corpus is wrong: correct it.")
    if job == "fail":
        raise LookupError("a bug")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(job, Path):
        while True:
            job.write_text(f"{os.getpid()}")
            time.sleep(0.01)


def fail_to_start():
    raise InputError("There is no such task: name another.")
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    (tmp_path / "worker_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "worker_helpers", raising=False)
    import worker_helpers

    yield worker_helpers
    sys.modules.pop("worker_helpers")


def test_every_job_is_done_once_by_whoever_is_free(helpers):
    """The first job takes until the last one is done, so the other process does all the rest."""
    jobs, reports = ["long", *"abcde", "last"], []
    workers.run(jobs, helpers.start, 2, reports.append)
    by = {job: process for job, process, _ in reports}
    assert sorted(by) == sorted(jobs) and len(reports) == len(jobs)
    assert len(set(by.values())) == 2 and os.getpid() not in by.values()
    assert by["long"] not in [by[job] for job in jobs[1:]]
    assert {started for *_, started in reports} == {"1"}


def test_no_more_processes_than_jobs(helpers):
    reports = []
    workers.run([1], helpers.start, 8, reports.append)
    assert len(reports) == 1
    workers.run([], helpers.start, 8, reports.append)
    assert len(reports) == 1


def test_wrong_input_is_said_as_the_worker_said_it(helpers):
    with pytest.raises(InputError, match=r"^The corpus is wrong: correct it\.$"):
        workers.run(["a", "refuse"], helpers.start, 2, lambda report: None)
    with pytest.raises(InputError, match="There is no such task"):
        workers.run([1, 2], helpers.fail_to_start, 2, lambda report: None)


def test_a_failure_comes_with_its_traceback(helpers):
    with pytest.raises(workers.WorkerError, match="(?s)in work\n.*LookupError: a bug"):
        workers.run(["fail"], helpers.start, 1, lambda report: None)


def test_a_killed_worker_is_noticed(helpers):
    with pytest.raises(workers.WorkerError, match="exit code -9"):
        workers.run(["a", "die", "b", "c"], helpers.start, 2, lambda report: None)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command(helpers, tmp_path, number):
    files = [tmp_path / "a", tmp_path / "b"]
    program = (
        "import signal\n"
        "from pathlib import Path\n"
        "from pretrain import workers\n"
        # Ignored where the tests run in the background of a shell.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import worker_helpers\n"
        f"jobs = [Path(name) for name in {[str(file) for file in files]!r}]\n"
        "workers.run(jobs, worker_helpers.start, 2, lambda report: None)\n"
    )
    path = f"{tmp_path}:{Path(pretrain.__file__).parents[1]}"
    command = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes = [int(file.read_text()) for file in files]
    for process in processes if number == signal.SIGINT else []:
        os.kill(process, number)  # a terminal sends it to all of them; they leave it to the command
    written = [file.stat().st_mtime_ns for file in files]
    while any(file.stat().st_mtime_ns == before for file, before in zip(files, written, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.send_signal(number)
    command.communicate(timeout=30)
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, processes))
