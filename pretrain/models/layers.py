"""The small layers every family is made of.

Shapes: B batch, L length, D embed, F mlp, V vocab, N heads, H head_dim.
Parameters are float32; `dtype` is what a layer computes in (norms and softmax: always float32).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.parallel import sharding


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its approximation by tanh (https://arxiv.org/abs/1606.08415), which is T5 1.1's.

    The forward pass keeps the derivative. Left to itself, XLA computes the tanh again in each of the places
    where the backward pass uses it.
    """
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = jnp.tanh(root * (x + cubic * x**3))
    slope = root * (1 + 3 * cubic * x * x)
    return gelu(x), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope


gelu.defvjp(_gelu_forward, lambda derivative, gradient: (derivative * gradient,))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "exact_gelu": lambda x: jax.nn.gelu(x, approximate=False),  # BERT's
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

RESIDUAL = ("batch", "length", "embed")


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(kept, x / (1.0 - rate), 0)


def split(key: jax.Array | None, num: int) -> tuple[jax.Array | None, ...]:
    """`num` keys out of one, or as many Nones: no key means no dropout."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (https://arxiv.org/abs/1910.07467): no mean, no bias; float32 inside."""

    def __init__(self, dim: int, *, epsilon: float):
        self.scale = nnx.Param(sharding.full((dim,), (None,), 1.0))
        self.epsilon = epsilon

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        x = x_BLD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * self.scale[...]).astype(x_BLD.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance are normed, then scaled and shifted (https://arxiv.org/abs/1607.06450); float32."""

    def __init__(self, dim: int, *, epsilon: float):
        self.scale = nnx.Param(sharding.full((dim,), (None,), 1.0))
        self.shift = nnx.Param(sharding.full((dim,), (None,), 0.0))
        self.epsilon = epsilon

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        x = x_BLD.astype(jnp.float32)
        x -= jnp.mean(x, axis=-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * self.scale[...] + self.shift[...]).astype(x_BLD.dtype)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def bias(size: int, axis: str | None, wanted: bool) -> nnx.Param | None:
    """What a product with weights adds, [size] zeros at first; None where it adds nothing."""
    return nnx.Param(sharding.full((size,), (axis,), 0.0)) if wanted else None


def affine(
    x_BLI: jax.Array, kernel_IO: nnx.Param, bias_O: nnx.Param | None, axes: tuple[str | None, ...]
) -> jax.Array:
    """x W + b, [B, L, O] laid out by `axes`."""
    y_BLO = sharding.matmul(x_BLI, kernel_IO[...], axes=axes)
    return y_BLO if bias_O is None else y_BLO + bias_O[...].astype(y_BLO.dtype)


class Embedding(nnx.Module):
    """Token embeddings [V, D]; `attend` uses the same table as the output layer (tied logits)."""

    def __init__(self, vocab_size: int, dim: int, *, stddev: float, key: jax.Array):
        self.table = nnx.Param(sharding.normal(key, (vocab_size, dim), ("vocab", "embed"), stddev))

    def __call__(self, ids_BL: jax.Array, dtype) -> jax.Array:
        # Gathering from a table cut along D makes XLA replicate the result and cut it again: gather D first.
        table = sharding.constrain(self.table[...].astype(dtype), ("vocab", None))
        return sharding.take(table, ids_BL, RESIDUAL)

    def attend(self, x_BLD: jax.Array) -> jax.Array:
        return logits(x_BLD, self.table[...].T)


class Unembedding(nnx.Module):
    """The output layer [D, V] of a model with untied logits."""

    def __init__(self, dim: int, vocab_size: int, *, key: jax.Array):
        self.kernel = nnx.Param(sharding.normal(key, (dim, vocab_size), ("embed", "vocab"), dim**-0.5))

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return logits(x_BLD, self.kernel[...])


def logits(x_BLD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """Float32 logits [B, L, V]: the product in x's dtype, summed in float32."""
    return sharding.matmul(x_BLD, kernel_DV, axes=("batch", "length", "vocab"), dtype=jnp.float32)


class MLP(nnx.Module):
    """act(x W_gate) * (x W_up) W_down (https://arxiv.org/abs/2002.05202), or act(x W_up) W_down."""

    def __init__(
        self, dim: int, mlp_dim: int, *, activation: str, gated: bool, biases: bool, dropout: float,
        key: jax.Array,
    ):  # fmt: skip
        gate, up, down = jax.random.split(key, 3)
        into, out_of = ("embed", "mlp"), ("mlp", "embed")
        if gated:
            self.gate = nnx.Param(sharding.normal(gate, (dim, mlp_dim), into, dim**-0.5))
            self.gate_bias = bias(mlp_dim, "mlp", biases)
        self.up = nnx.Param(sharding.normal(up, (dim, mlp_dim), into, dim**-0.5))
        self.up_bias = bias(mlp_dim, "mlp", biases)
        self.down = nnx.Param(sharding.normal(down, (mlp_dim, dim), out_of, mlp_dim**-0.5))
        self.down_bias = bias(dim, None, biases)
        self.activation = activation
        self.gated = gated
        self.dropout = dropout

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        hidden, act = ("batch", "length", "mlp"), ACTIVATIONS[self.activation]
        up_BLF = checkpoint_name(affine(x_BLD, self.up, self.up_bias, hidden), "up")
        if self.gated:
            gate_BLF = checkpoint_name(affine(x_BLD, self.gate, self.gate_bias, hidden), "gate")
            h_BLF = act(gate_BLF) * up_BLF
        else:
            h_BLF = act(up_BLF)
        h_BLF = dropout(h_BLF, self.dropout, key)
        return affine(h_BLF, self.down, self.down_bias, RESIDUAL)


def rotate(x_BLNH: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864), the two halves of H forming the pairs."""
    half = x_BLNH.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BL.astype(jnp.float32)[:, :, None, None] * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLNH.dtype)
