"""The first signal asks, the second ends."""

import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from pretrain import config
from pretrain.training import model_dirs
from pretrain.training.stopping import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number):
    program = (
        "import signal\n"
        "from pretrain.training.stopping import Stop\n"
        "with Stop() as stop:\n"
        "    print(stop(1))\n"
        f"    signal.raise_signal({int(number)})\n"
        "    print(stop(2), flush=True)\n"
        f"    signal.raise_signal({int(number)})\n"
        "    print('still here', flush=True)\n"
    )
    root = config.shipped().parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == -number
    assert done.stdout == "False\nTrue\n"
    assert "a second signal ends the run at once" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_what_does_not_come_back_to_python(number):
    program = (
        "import hashlib\n"
        "from pretrain.training.stopping import Stop\n"
        "with Stop():\n"
        "    print('working', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=config.shipped().parent, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "working\n"
        for _ in range(2):
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
    finally:
        process.kill()


def test_jax_starts_before_a_signal_is_taken(monkeypatch):
    """It starts under a lock, for which a handler that asks JAX something would wait for ever."""
    before, seen = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(jax, "process_count", lambda: seen.append(signal.getsignal(signal.SIGINT)) or 1)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop(1)
    assert seen == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_signal_did_before_a_run_it_does_after_it(number):
    before = signal.getsignal(number)
    with Stop():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


SAVES_FOR_EVER = """\
import time
from pretrain import checkpointing
from pretrain.cli import main
from pretrain.training.stopping import Stop

save, heard = checkpointing.Checkpoints.save, Stop._heard
asked = []

def hear(*arguments):
    asked.append(True)
    heard(*arguments)

def slow(*arguments):
    if asked:
        time.sleep(600)
    save(*arguments)

Stop._heard, checkpointing.Checkpoints.save = hear, slow
main.main()
"""


def long_run(place, name: str, count: int, *program: str) -> list[subprocess.Popen]:
    """A run without end that has saved; it is killed if a test waits for it in vain."""
    settings = ("--gin.steps=1000000", "--gin.checkpoint_period=4", "--gin.log_period=1000")
    words = (*program, "train", "run.gin", "--model-dir", name, *settings)
    processes = place.launch_several(count, *words)
    guard = threading.Timer(200, lambda: [process.kill() for process in processes])
    guard.daemon = True
    guard.start()
    while not model_dirs.latest_step(place.directory / name):
        assert all(process.poll() is None for process in processes), place.ended(*processes)
        time.sleep(0.02)
    return processes


def test_two_processes_are_one_run_and_when_one_is_asked_both_save_the_same_step(place):
    """The whole command: one ledger, one console, a data position of each process."""
    processes = long_run(place, "asked", 2, "-m", "pretrain.cli.main")
    processes[1].terminate()
    first, second = place.ended(*processes, seconds=60)
    assert (first[0], second[0]) == (0, 0), (first, second)
    steps = [line["step"] for line in place.lines("asked", "ledger")]
    assert steps == list(range(1, steps[-1] + 1))
    assert model_dirs.latest_step(place.directory / "asked") == steps[-1]
    assert f"Stopped and saved at step {steps[-1]:,}" in first[1]
    assert "a second signal ends the run at once" in first[2] and second[1] == ""
    assert "[Gloo]" not in first[1] + first[2]
    (started,) = [line for line in place.lines("asked", "metrics") if line.get("event") == "started"]
    assert started["processes"] == 2
    positions = (place.directory / f"asked/checkpoints/{steps[-1]}/data").glob("*.json")
    assert {path.name for path in positions} == {
        "iterator_00000_of_00002.json",
        "iterator_00001_of_00002.json",
    }


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_signal_does_not_wait_for_the_save(place, count):
    name = f"twice{count}"
    processes = long_run(place, name, count, "-c", SAVES_FOR_EVER)
    for process in processes:
        process.terminate()
    assert any("a second signal ends the run at once" in line for line in processes[0].stderr)
    before = model_dirs.latest_step(place.directory / name)
    for process in processes:
        process.terminate()
    first, *others = [code for code, _, _ in place.ended(*processes, seconds=20)]
    assert first == -signal.SIGTERM
    # The first may be gone before the other's signal arrives, and then that one is ended for it.
    assert set(others) <= {-signal.SIGTERM, -signal.SIGABRT}
    assert model_dirs.latest_step(place.directory / name) == before >= 4
