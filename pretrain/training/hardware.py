"""What the devices of a run can do at best, for model FLOPs utilisation."""

import jax

# Dense bfloat16 peak of one device (a chip's figure shared by the cores JAX shows), from the vendors' sheets.
PEAK_FLOPS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
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
