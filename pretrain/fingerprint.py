"""A short sum of every array that any changed bit changes, the same on every mesh.

Neither Orbax nor TensorStore notices a bit that flips inside a stored array. A checkpoint therefore carries
these sums; they are taken on the devices, each of its own part, and cost a pass over the state.
"""

from typing import Any

import jax
import jax.numpy as jnp

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


def _sum(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    position = jnp.zeros((), jnp.uint32)
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
