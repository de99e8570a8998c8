"""A stall is said with what was waited for and every stack, and ends the process only where that is asked."""

import subprocess
import sys
import time

from pretrain import config

PROGRAM = """
import time
from pretrain.training.watchdog import Watchdog
def waits_for_ever():
    time.sleep({sleep})
with Watchdog(0.4, ends={ends}) as watchdog:
    watchdog.doing("step 7")
    waits_for_ever()
print("went on")
"""


def run(**settings) -> subprocess.CompletedProcess:
    program = PROGRAM.format(**settings)
    root = config.shipped().parent
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)


def test_a_stall_is_said_and_ended():
    began = time.monotonic()
    done = run(sleep=60, ends=True)
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    assert "the run has been waiting for step 7; ending it" in done.stderr
    assert "waits_for_ever" in done.stderr


def test_a_stall_may_be_only_said():
    done = run(sleep=1.0, ends=False)
    assert done.returncode == 0
    assert done.stdout == "went on\n"
    assert 1 <= done.stderr.count("waiting for step 7") <= 2


def test_a_loop_that_goes_on_is_left_alone():
    from pretrain.training.watchdog import Watchdog

    ended = []
    with Watchdog(0.5, ends=True, exit=ended.append) as watchdog:
        for step in range(8):
            watchdog.doing(f"step {step}")
            time.sleep(0.1)
    assert not ended
