"""One run as several processes: they meet before anything is computed, agree, and leave together."""

import atexit
import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pretrain.errors import InputError

TIMEOUT = 60.0  # seconds for all to come
HEARTBEAT = 100  # seconds without a sign of life after which a process counts as dead; JAX's own default
FAREWELL = 10.0  # seconds that a process which failed waits for the others, which may have failed too


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What started this process says in its environment where they meet: a TPU pod, Slurm or Open MPI."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and where they meet.

    coordinator: HOST:PORT of process 0, as all can reach it.

    >>> Place("localhost:8476", processes=2, process=1).port
    8476
    """

    coordinator: str
    processes: int
    process: int

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise InputError(
                f"--coordinator is {self.coordinator!r}; write HOST:PORT of process 0, such as 10.0.0.1:8476."
            )
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"--process is {self.process} of --processes {self.processes}; number them from 0 to "
                f"{self.processes - 1}."
            )

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


@contextlib.contextmanager
def joined(
    place: Place | Cluster | None, timeout: float = TIMEOUT, heartbeat: int = HEARTBEAT
) -> Iterator[None]:
    """Makes this process one of several while inside; `None` leaves it alone. Before anything uses a device.

    Simulated CPU devices are as many in each process as the environment says in JAX_NUM_CPU_DEVICES. Only
    process 0 keeps its stdout. A process that leaves with an exception ends soon, whatever the others do. One
    that is killed can say nothing: where the others wait for it, they end after `heartbeat` seconds.

    Raises InputError if not all have come after `timeout` seconds.
    """
    if place is None:
        yield
        return
    if isinstance(place, Place):
        _only_the_first_prints(place.process)
    try:
        start(place, timeout, heartbeat)
    except InputError:
        atexit.register(_end, 2)  # without JAX's own end, which is not made for a meeting that was none
        raise
    if isinstance(place, Cluster):
        _only_the_first_prints(jax.process_index())
    try:
        yield
    except BaseException as error:
        # At exit JAX waits minutes for the others, who may be waiting for this process.
        guard = threading.Timer(FAREWELL, _end, [_exit_code(error)])
        guard.daemon = True
        guard.start()
        raise


def start(place: Place | Cluster, timeout: float = TIMEOUT, heartbeat: int = HEARTBEAT) -> None:
    """Returns when all processes have come. Raises InputError if they have not after `timeout` seconds."""
    if isinstance(place, Place) and place.process == 0 and _is_taken(place.port):
        raise InputError(
            f"--coordinator is {place.coordinator}, but another program is at that port: take another."
        )
    # JAX aborts the process when its own time is up: it gets more of it, and this thread looks at the clock.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    failures: list[Exception] = []
    meeting = threading.Thread(target=_meet, args=(place, 2 * timeout + 60, heartbeat, failures), daemon=True)
    meeting.start()
    meeting.join(timeout)
    if meeting.is_alive():
        raise InputError(_who_is_missing(place, timeout))
    if failures:
        raise InputError(_cannot_start(place, failures[0])) from failures[0]


def _cannot_start(place: Place | Cluster, error: Exception) -> str:
    if isinstance(place, Cluster):
        return (
            "--cluster: the environment says nothing of a TPU pod, Slurm or Open MPI that can be used "
            f"({error}): give --coordinator, --processes and --process."
        )
    return (
        f"Process {place.process} of {place.processes} cannot be started with --coordinator "
        f"{place.coordinator} ({error}): give an address and a port that all can reach."
    )


def _is_taken(port: int) -> bool:
    """Whether somebody listens there already, which JAX's service may end with a crash."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _meet(place: Place | Cluster, timeout: float, heartbeat: int, failures: list[Exception]) -> None:
    where: dict[str, Any] = {}
    if isinstance(place, Place):
        where = {"coordinator_address": place.coordinator, "num_processes": place.processes}
        where["process_id"] = place.process
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=heartbeat,
        )
    except Exception as error:  # raised again where it is heard
        failures.append(error)


def _who_is_missing(place: Place | Cluster, timeout: float) -> str:
    if isinstance(place, Cluster):
        return (
            f"This process waited {timeout:g} seconds for the others of its cluster: start them together, "
            "or give a longer --initialization-timeout."
        )
    waited = f"Process {place.process} waited {timeout:g} seconds for"
    longer = "start them together, or give a longer --initialization-timeout."
    if place.process == 0 or _answers(place):
        return f"{waited} all {place.processes} processes to come to {place.coordinator}: {longer}"
    return f"{waited} process 0, which does not answer at --coordinator {place.coordinator}: {longer}"


def _answers(place: Place) -> bool:
    try:
        socket.create_connection((place.host, place.port), timeout=1).close()
    except OSError:
        return False
    return True


def _only_the_first_prints(process: int) -> None:
    """What C++ prints there, such as gloo's greetings, nobody reads; the others' own words go with it."""
    sys.stdout.flush()
    if process == 0:
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _exit_code(error: BaseException) -> int:
    """The code that `cli/main.py` ends with after `error`."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 2 if isinstance(error, InputError) else 1


def _end(code: int) -> None:
    """Ends the process, whatever its other threads are waiting for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def on_any(flag: bool) -> bool:
    """Whether `flag` is true on some process. All of them must call it."""
    return bool(largest(int(flag)))


def largest(number: int) -> int:
    """The largest that any process has. All of them must call it."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.array(number, np.int32))))


def sync(reason: str) -> None:
    """Returns when all processes are here, with the same `reason`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def refuse_difference(what: str, value: str) -> None:
    """Raises InputError on every process unless all have the same `value`. All of them must call it."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.blake2b(value.encode(), digest_size=8).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if others := [index for index, each in enumerate(digests) if (each != digests[0]).any()]:
        raise InputError(
            f"{what} of process {others[0]} differ from those of process 0: start all with the same."
        )
