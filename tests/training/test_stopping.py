"""The first signal asks, the second ends."""

import signal
import subprocess
import sys

import pytest

from pretrain import config
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
def test_what_a_signal_did_before_a_run_it_does_after_it(number):
    before = signal.getsignal(number)
    with Stop():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
