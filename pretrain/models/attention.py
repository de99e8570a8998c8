"""Attention as a module: projections, positions and a cache around a backend that mixes the values.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, H head_dim, D embed.
"""

import math

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models import backends, layers
from pretrain.models.masks import Bias, Offset, Seen
from pretrain.models.products import HEADS
from pretrain.parallel import sharding

Cache = dict[str, jax.Array]
NO_CACHE: Cache = {}


class RelativeBias(nnx.Module):
    """The table of T5's relative position bias, which all layers of a stack share."""

    def __init__(
        self, num_heads: int, *, bidirectional: bool, buckets: int, max_distance: int, key: jax.Array
    ):
        stddev = math.sqrt(2.0 / (buckets + num_heads))
        self.table = nnx.Param(sharding.normal(key, (buckets, num_heads), (None, "heads"), stddev))
        self.bidirectional = bidirectional
        self.max_distance = max_distance

    def __call__(self, query_positions_Q: jax.Array, key_positions_K: jax.Array) -> Bias:
        return Bias(
            table=self.table[...], query_positions=query_positions_Q, key_positions=key_positions_K,
            bidirectional=self.bidirectional, max_distance=self.max_distance,
        )  # fmt: skip


class Attention(nnx.Module):
    """Multi-head attention with grouped key/value heads (https://arxiv.org/abs/2305.13245).

    `scale` multiplies the scores: H^-0.5, or 1 for T5, which folds it into the initial query weights.
    `theta` is the base of rotary positions, None for none.
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, *,
        scaled: bool, theta: float | None, biases: bool, dropout: float, backend: str, chunk: int,
        key: jax.Array,
    ):  # fmt: skip
        query, keys, value, out = jax.random.split(key, 4)
        into, out_of = ("embed", "heads"), ("heads", "embed")
        heads, kv_heads = num_heads * head_dim, num_kv_heads * head_dim
        query_stddev = dim**-0.5 * (1.0 if scaled else head_dim**-0.5)
        # Heads and head_dim are one dimension of the weights, so that Adafactor sees (and factors) matrices.
        self.query = nnx.Param(sharding.normal(query, (dim, heads), into, query_stddev))
        self.key = nnx.Param(sharding.normal(keys, (dim, kv_heads), into, dim**-0.5))
        self.value = nnx.Param(sharding.normal(value, (dim, kv_heads), into, dim**-0.5))
        self.out = nnx.Param(sharding.normal(out, (heads, dim), out_of, heads**-0.5))
        self.query_bias = layers.bias(heads, "heads", biases)
        self.key_bias = layers.bias(kv_heads, "heads", biases)
        self.value_bias = layers.bias(kv_heads, "heads", biases)
        self.out_bias = layers.bias(dim, None, biases)
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scaled else 1.0
        self.theta = theta
        self.dropout = dropout
        self.backend = backend
        self.chunk = chunk

    def project(
        self, x_BLD: jax.Array, weight: nnx.Param, bias: nnx.Param | None, positions_BL: jax.Array | None
    ) -> jax.Array:
        """Heads [B, L, N or M, H] of x, rotated if positions are given and rotary."""
        joined = layers.affine(x_BLD, weight, bias, ("batch", "length", "heads"))
        y_BLNH = sharding.reshape(joined, (*x_BLD.shape[:2], -1, self.head_dim), HEADS)
        if self.theta is None or positions_BL is None:
            return y_BLNH
        return layers.rotate(y_BLNH, positions_BL, self.theta)

    def __call__(
        self, x_BQD: jax.Array, memory_BKD: jax.Array, *, seen: Seen, bias: Offset = None,
        positions_BQ: jax.Array | None = None, key: jax.Array | None = None, cache: Cache = NO_CACHE,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache]:  # fmt: skip
        """Returns [B, Q, D] and the cache with this call's keys and values written at `index`.

        With a cache, `seen` and `bias` run over all of its K positions, and the plain backend mixes them.
        """
        query = checkpoint_name(self.project(x_BQD, self.query, self.query_bias, positions_BQ), "query")
        keys = checkpoint_name(self.project(memory_BKD, self.key, self.key_bias, positions_BQ), "key")
        value = checkpoint_name(self.project(memory_BKD, self.value, self.value_bias, None), "value")
        if cache:
            start = (0, index, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache["key"], keys.astype(cache["key"].dtype), start)
            value = jax.lax.dynamic_update_slice(cache["value"], value.astype(cache["value"].dtype), start)
            cache = {"key": keys, "value": value}
        # Every query looks at all keys: where the length is cut, they are gathered.
        whole = ("batch", None, "heads", None)
        keys, value = sharding.constrain(keys, whole), sharding.constrain(value, whole)
        mix = backends.plain if cache else backends.named(self.backend, self.chunk)
        mixed = mix(query * self.scale, keys, value, seen, bias, dropout=self.dropout, key=key)
        joined = sharding.reshape(mixed, (*x_BQD.shape[:2], -1), ("batch", "length", "heads"))
        y_BQD = layers.affine(joined, self.out, self.out_bias, layers.RESIDUAL)
        return checkpoint_name(y_BQD, "out"), cache


def empty_cache(num_layers: int, batch: int, length: int, num_kv_heads: int, head_dim: int, dtype) -> Cache:
    """Keys and values [layers, B, K, M, H] of a stack, all zero."""
    axes = (None, "batch", "length", "heads", "head_dim")
    shape = (num_layers, batch, length, num_kv_heads, head_dim)
    return {name: sharding.full(shape, axes, 0, dtype) for name in ("key", "value")}
