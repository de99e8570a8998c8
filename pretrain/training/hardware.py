"""What devices can do at best, for utilisation and for plans."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip by its maker's sheet. memory: bytes; all else a second.

    flops: dense, bfloat16; link_bandwidth: bytes over all its links within a slice; slice_bandwidth: bytes to
    other slices, its share of its host's network; clock: cycles.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    slice_bandwidth: float
    clock: float


# By the name that JAX has for it.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.125e9, 1.5e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 1.75e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1600e9, 400e9, 12.5e9, 1.75e9),
}

# Dense bfloat16 peak of one device (a chip's figure shared by the cores JAX shows), from the vendors' sheets.
PEAK_FLOPS = {
    "TPU v3": 61.5e12,
    "TPU v5e": CHIPS["TPU v5 lite"].flops,
    "TPU v5p": CHIPS["TPU v5"].flops,
    "TPU v6e": CHIPS["TPU v6 lite"].flops,
    **{name: chip.flops for name, chip in CHIPS.items()},
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak floating point operations a second of `device`; None where the table does not know it (CPUs)."""
    kind = device.device_kind
    names = sorted((name for name in PEAK_FLOPS if kind.startswith(name)), key=len)
    return PEAK_FLOPS[names[-1]] if names else None


def peak_memory(device: jax.Device) -> int | None:
    """Most bytes ever in use on `device`; None where the backend does not count (CPUs)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
