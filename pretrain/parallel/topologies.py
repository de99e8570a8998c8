"""Devices that are not here: TPU slices by their compiler alone, and simulated CPUs."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from pretrain.errors import InputError

# The two cores of a chip are one device on v4 and v5p, as they are in a real slice.
TPUS = {"v4": "megacore", "v5e": "default", "v5p": "megacore", "v6e": "default"}
EXAMPLES = "v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4 or cpu:8"

# What libtpu would ask of the cloud machine that it is not on; and several may compile at a time.
ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many slices of a kind and shape of device.

    >>> Topology("v5p:2x2x1", slices=2)
    Topology(name='v5p:2x2x1', slices=2)
    >>> Topology("v7:8")
    Traceback (most recent call last):
    ...
    pretrain.errors.InputError: --topology is 'v7:8'; give v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4 or cpu:8.
    """

    name: str
    slices: int = 1

    def __post_init__(self):
        kind, _, shape = self.name.partition(":")
        wanted = {"cpu": r"\d+", "v5e": r"\d+x\d+", "v6e": r"\d+x\d+"}.get(kind, r"\d+x\d+x\d+")
        if kind not in (*TPUS, "cpu") or not re.fullmatch(wanted, shape) or re.search(r"\b0", shape):
            raise InputError(f"--topology is {self.name!r}; give {EXAMPLES}.")
        if kind == "cpu" and self.slices > 1:
            raise InputError("--slices is for TPUs; CPUs are one slice.")

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    def devices(self) -> Sequence[jax.Device]:
        """Devices that programs can be compiled for; only those of a CPU can also run them.

        Raises InputError if there is no such topology, or libtpu is not installed.
        """
        if self.kind == "cpu":
            return _cpus(int(self.name.partition(":")[2]))
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(f"--topology {self.name} needs the TPU compiler: pip install 'pretrain[tpu]'.")
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
        several = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            return topologies.get_topology_desc(
                platform="tpu", topology_name=self.name, chip_config_name=TPUS[self.kind], **several
            ).devices
        except jax.errors.JaxRuntimeError as error:
            if "INVALID_ARGUMENT" not in str(error):
                raise
            raise InputError(
                f"The TPU compiler knows no --topology {self.name} ({str(error).splitlines()[0]}): "
                f"give {EXAMPLES}."
            ) from error


def _cpus(number: int) -> Sequence[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX has begun, with as many as it was told before
        jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise InputError(
            f"--topology is cpu:{number}, but this process began with {len(devices)}: leave "
            "JAX_NUM_CPU_DEVICES away, or set it so high."
        )
    return devices[:number]
