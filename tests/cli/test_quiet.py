"""What libraries say that is not for people is not said, and nothing else is kept from them."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pretrain.cli import quiet


def record(pathname: str, message: str) -> logging.LogRecord:
    return logging.LogRecord("asyncio", logging.ERROR, pathname, 1, message, None, None)


def test_what_orbax_raises_it_does_not_log_too():
    assert not quiet._is_not_orbax(record("/lib/orbax/checkpoint/manager.py", "failed"))
    task = "Task exception was never retrieved: defined at /lib/orbax/checkpoint/serialization.py:126"
    assert not quiet._is_not_orbax(record("/lib/asyncio/base_events.py", task))
    assert quiet._is_not_orbax(record("/lib/asyncio/base_events.py", "Task exception was never retrieved"))


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
