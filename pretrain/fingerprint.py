"""A short sum of every array that any changed bit changes, the same on every mesh.

Neither Orbax nor TensorStore notices a bit that flips inside a stored array. A checkpoint therefore carries
these sums; they are taken on the devices, each of its own part, and cost a pass over the state.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.trees import named_leaves


def fingerprint(tree: Any) -> dict[str, jax.Array]:
    """uint32 of every array, by its name such as `params/decoder/final_norm/scale`; trace or jit it.

    Each element's bits are mixed with its position and added up modulo 2^32. Addition does not care in which
    order or on which devices, and the mixing is a bijection, so a single changed element always shows; any
    other change goes unseen once in 2^32.

    >>> one, other = fingerprint({"w": jnp.arange(6.0)}), fingerprint({"w": jnp.arange(6.0)[::-1]})
    >>> bool(one["w"] == other["w"])
    False
    """
    return {name: _sum(leaf) for name, leaf in named_leaves(tree).items()}


def batch_hash(batch: Mapping[str, jax.Array]) -> jax.Array:
    """uint32 [2] that tells global batches apart, by the names, shapes and elements of their features.

    It is the same for any number of processes.

    >>> batch = {"tokens": jnp.array([[3, 4]]), "weights": jnp.array([[1.0, 1.0]])}
    >>> hexadecimal(batch_hash(batch)) == hexadecimal(batch_hash(batch | {"tokens": jnp.array([[4, 3]])}))
    False
    """
    words = []
    for salt in (0, 1):
        total = jnp.zeros((), jnp.uint32)
        for name, value in sorted(batch.items()):
            kind = zlib.crc32(f"{name} {value.shape} {value.dtype}".encode())
            total = _mixed(total + _sum(value, salt) + jnp.uint32(kind))
        words.append(total)
    return jnp.stack(words)


def hexadecimal(words: np.ndarray | jax.Array) -> str:
    """
    >>> hexadecimal(np.array([1, 255], np.uint32))
    '00000001000000ff'
    """
    return "".join(f"{int(word):08x}" for word in words)


def _sum(x: jax.Array, salt: int = 0) -> jax.Array:
    bits = _bits(x)
    position = jnp.full((), salt * 0x9E3779B9 % 2**32, jnp.uint32)
    for dimension, size in enumerate(x.shape):
        along = jnp.arange(size, dtype=jnp.uint32).reshape([-1] + [1] * (x.ndim - dimension - 1))
        position = position * jnp.uint32(size % 2**32) + along
    return jnp.sum(_mixed(bits + _mixed(position)), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """The elements as uint32; wider ones are folded, which hides no single flip."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = 8 * x.dtype.itemsize
    unsigned = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
    if width <= 32:
        return unsigned.astype(jnp.uint32)
    return (unsigned ^ (unsigned >> 32)).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3 (https://github.com/aappleby/smhasher), a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
