"""The device mesh: which named axes the devices of a run are arranged along."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from pretrain.errors import InputError

AXES = ("replica", "data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; -1 (one axis at most) takes what the others leave.

    replica: slices of devices, between which the network is slow: copies of the model, that share the batch.
    data: copies of the model within a slice, each with its share of the batch.
    fsdp: shares of the batch again, with the parameters and optimizer state cut up along them.
    context: shares of the length of every sequence; each gathers the keys and values of all.
    tensor: shares of heads, mlp and vocabulary (Megatron-style tensor parallelism).

    >>> MeshConfig(data=-1, tensor=2).sizes(8)
    {'replica': 1, 'data': 4, 'fsdp': 1, 'context': 1, 'tensor': 2}
    """

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of every axis on so many devices. Raises InputError if they do not multiply to it."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        asked = described(sizes)
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
        """The mesh over `devices` (default: all), with Explicit axes: shardings are part of array types.

        Devices of several slices are laid out so that only `replica` crosses from one to another.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        explicit = (AxisType.Explicit,) * len(sizes)
        # Of GPUs XLA calls every machine a slice, and any axis may cross from one to another.
        slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
        if slices <= 1:
            shape = tuple(sizes.values())
            return jax.make_mesh(shape, tuple(sizes), axis_types=explicit, devices=devices)
        if sizes["replica"] != slices:
            raise InputError(
                f"The devices are in {slices} slices, but the mesh is {described(sizes)}: set "
                f"MeshConfig.replica to {slices}."
            )
        within = {**sizes, "replica": 1}
        between = {**dict.fromkeys(sizes, 1), "replica": slices}
        laid_out = mesh_utils.create_hybrid_device_mesh(
            tuple(within.values()), tuple(between.values()), devices
        )
        return jax.sharding.Mesh(laid_out, tuple(sizes), axis_types=explicit)


def described(sizes: Mapping[str, int]) -> str:
    """The axes that are cut.

    >>> described({"data": 4, "fsdp": 1, "tensor": 2}), described({"data": 1, "fsdp": 1})
    ('data=4, tensor=2', 'data=1')
    """
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"
