"""What libraries say that is not for people is not said, and nothing else is kept from them."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pretrain.cli import quiet
from pretrain.parallel.topologies import ALONE


def record(name: str, pathname: str, message: str, failed=None) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, pathname, 1, message, None, failed)


def test_what_orbax_raises_it_does_not_log_too():
    assert not quiet._is_not_orbax(record("absl", "/lib/orbax/checkpoint/manager.py", "failed"))
    assert quiet._is_not_orbax(record("absl", "/lib/reader.py", "no file /data/orbax/checkpoint/1"))
    task = "Task exception was never retrieved: defined at /lib/orbax/checkpoint/serialization.py:126"
    events = "/home/orbax/checkpoint/lib/asyncio/base_events.py"
    assert not quiet._is_not_orbax(record("asyncio", events, task))
    assert quiet._is_not_orbax(record("asyncio", events, "Task exception was never retrieved"))


@pytest.mark.parametrize("orbax", [True, False])
def test_tasks_of_orbax_that_were_gathered_are_known_by_their_traceback(orbax):
    file = f"/lib/{'orbax' if orbax else 'other'}/checkpoint/serialization.py"
    try:
        exec(compile("raise ValueError('No space left on device')", file, "exec"))
    except ValueError:
        failed = sys.exc_info()
    gathered = record("asyncio", "/lib/asyncio/base_events.py", "_GatheringFuture exception", failed)
    assert quiet._is_not_orbax(gathered) != orbax


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Event loop is closed", False),
        ("Encountered error while reading array index: (slice(0, 2, 1),). See full TensorStore", False),
        ("something else", True),
    ],
)
def test_exceptions_of_the_arrays_that_end_after_one_that_failed(message, shown, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "__unraisablehook__", seen.append)
    quiet._without_late_arrays(SimpleNamespace(exc_value=Exception(message)))
    assert bool(seen) == shown


def test_libtpu_is_silent_where_there_is_no_tpu(tpu_compiler):
    """In a process of its own, since a backend is made once."""
    code = "from pretrain.cli.quiet import quiet_logs; quiet_logs(); import jax; jax.devices()"
    told = {*ALONE, "JAX_PLATFORMS"}  # by tests before this one
    environment = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
