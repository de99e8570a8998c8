"""The device mesh: which named axes the devices of a run are arranged along."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType

from pretrain.errors import InputError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; -1 (one axis at most) takes what the others leave.

    data: copies of the model, each with its share of the batch.
    fsdp: shares of the batch again, with the parameters and optimizer state cut up along them.
    tensor: shares of heads, mlp and vocabulary (Megatron-style tensor parallelism).

    >>> MeshConfig(data=-1, tensor=2).sizes(8)
    {'data': 4, 'fsdp': 1, 'tensor': 2}
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of every axis on so many devices. Raises InputError if they do not multiply to it."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise InputError(
                f"Mesh ({asked}): every axis must be a positive number and at most one may be -1 (the rest)."
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (not free and fixed != num_devices):
            raise InputError(
                f"Mesh ({asked}) needs {'a multiple of ' if free else ''}{fixed} devices but there are "
                f"{num_devices}; change MeshConfig so that the axes multiply to {num_devices}."
            )
        return sizes | dict.fromkeys(free, num_devices // fixed)

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices` (default: all), with Explicit axes: shardings are part of array types."""
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        return jax.make_mesh(
            tuple(sizes.values()),
            tuple(sizes),
            axis_types=(AxisType.Explicit,) * len(sizes),
            devices=devices,
        )
