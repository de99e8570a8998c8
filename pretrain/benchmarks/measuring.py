"""What every benchmark needs: clocks, the machine, the memory."""

import dataclasses
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from pretrain.training import hardware


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    platform: str
    device_kind: str
    devices: int
    processor: str
    cores: int
    jax: str
    python: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """The most `bytes` ever in use, `of` one device or, where the backend does not count, of this process."""

    bytes: int
    of: str


Tick = tuple[float, float]


def now() -> Tick:
    """Seconds on the clock, and of CPU time."""
    return time.perf_counter(), time.process_time()


@dataclasses.dataclass(frozen=True)
class Round:
    """Steps in a row: the `seconds` of each, and the mean `cpu_seconds` of all threads of this process."""

    seconds: Sequence[float]
    cpu_seconds: float

    @classmethod
    def between(cls, ticks: Sequence[Tick]) -> "Round":
        """The steps between these points in time, of which there is one more than steps."""
        clock, cpu = np.transpose(ticks)
        return cls(np.diff(clock).tolist(), float(np.diff(cpu).mean()))


def peak_memory() -> Memory:
    """The peak so far of the first device of this process, or else of the process itself."""
    if (used := hardware.peak_memory(jax.local_devices()[0])) is not None:
        return Memory(used, "device")
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process")


def machine(mesh: jax.sharding.Mesh) -> Machine:
    """The devices of `mesh` and the host of this process."""
    device = mesh.devices.flat[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        platform=device.platform,
        device_kind=device.device_kind,
        devices=mesh.size,
        processor=_processor(),
        cores=cores,
        jax=jax.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    """The CPU's name, which Python itself does not know on Linux."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
