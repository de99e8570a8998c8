"""Attention: who may look at whom (masks), at what distance (bias), and the product itself, with a cache.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim, D embed. A mask is bool [B, Q, K], True where a query sees a key; a bias is float32 [N, Q, K].
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models import layers
from pretrain.parallel import sharding

Cache = dict[str, jax.Array]
NO_CACHE: Cache = {}

HEADS = ("batch", "length", "heads", "head_dim")


def same_segment(query_BQ: jax.Array, key_BK: jax.Array) -> jax.Array:
    """Mask by segment ids: a document sees itself, padding (0) is seen by no document.

    Padding sees padding, so that no softmax is empty; its outputs carry no loss.
    """
    return query_BQ[:, :, None] == sharding.constrain(key_BK, ("batch", None))[:, None, :]


def causal(length: int, prefix_BL: jax.Array | None = None) -> jax.Array:
    """Mask [1 or B, L, L]: every position sees itself and what comes before, and the prefix all of it."""
    position = jnp.arange(length)
    mask = (position[:, None] >= position[None, :])[None]
    return mask if prefix_BL is None else mask | (sharding.constrain(prefix_BL, ("batch", None))[:, None] > 0)


class RelativeBias(nnx.Module):
    """T5's relative position bias: a learned number for each head and bucket of distances, shared by layers.

    Half of the buckets (per direction) hold one distance each, the rest grow logarithmically up to
    `max_distance` (https://arxiv.org/abs/1910.10683, section 2.1).
    """

    def __init__(
        self, num_heads: int, *, bidirectional: bool, buckets: int, max_distance: int, key: jax.Array
    ):
        stddev = math.sqrt(2.0 / (buckets + num_heads))
        self.table = nnx.Param(sharding.normal(key, (buckets, num_heads), (None, "heads"), stddev))
        self.bidirectional = bidirectional
        self.buckets = buckets
        self.max_distance = max_distance

    def bucket(self, distance: jax.Array) -> jax.Array:
        """The bucket of each `distance` = key position - query position."""
        buckets, first = self.buckets, jnp.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first = jnp.where(distance > 0, buckets, 0)
            distance = jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
        far = exact + (growth / math.log(self.max_distance / exact) * (buckets - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))

    def __call__(self, query_positions_Q: jax.Array, key_positions_K: jax.Array) -> jax.Array:
        bucket_QK = self.bucket(key_positions_K[None, :] - query_positions_Q[:, None])
        bias_QKN = sharding.take(self.table[...], bucket_QK, ("length", None, "heads"))
        return bias_QKN.transpose(2, 0, 1)


class Attention(nnx.Module):
    """Multi-head attention with grouped key/value heads (https://arxiv.org/abs/2305.13245).

    `scale` multiplies the scores: H^-0.5, or 1 for T5, which folds it into the initial query weights.
    `theta` is the base of rotary positions, None for none.
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, *,
        scaled: bool, theta: float | None, dropout: float, key: jax.Array,
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
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scaled else 1.0
        self.theta = theta
        self.dropout = dropout

    def project(self, x_BLD: jax.Array, weight: nnx.Param, positions_BL: jax.Array | None) -> jax.Array:
        """Heads [B, L, N or M, H] of x, rotated if positions are given and rotary."""
        joined = sharding.einsum(
            "BLD,DE->BLE", x_BLD, weight[...].astype(x_BLD.dtype), axes=("batch", "length", "heads")
        )
        y_BLNH = sharding.reshape(joined, (*x_BLD.shape[:2], -1, self.head_dim), HEADS)
        if self.theta is None or positions_BL is None:
            return y_BLNH
        return layers.rotate(y_BLNH, positions_BL, self.theta)

    def __call__(
        self, x_BQD: jax.Array, memory_BKD: jax.Array, *, mask_BQK: jax.Array,
        bias_NQK: jax.Array | None = None, positions_BQ: jax.Array | None = None,
        key: jax.Array | None = None, cache: Cache = NO_CACHE, index: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache]:  # fmt: skip
        """Returns [B, Q, D] and the cache with this call's keys and values written at `index`.

        With a cache, `mask` and `bias` run over all of its K positions.
        """
        query = checkpoint_name(self.project(x_BQD, self.query, positions_BQ), "query")
        keys = checkpoint_name(self.project(memory_BKD, self.key, positions_BQ), "key")
        value = checkpoint_name(self.project(memory_BKD, self.value, None), "value")
        if cache:
            start = (0, index, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache["key"], keys.astype(cache["key"].dtype), start)
            value = jax.lax.dynamic_update_slice(cache["value"], value.astype(cache["value"].dtype), start)
            cache = {"key": keys, "value": value}
        mixed = dot_product_attention(
            query * self.scale, keys, value, mask_BQK, bias_NQK, dropout=self.dropout, key=key
        )
        mixed = checkpoint_name(mixed, "mixed")
        joined = sharding.reshape(mixed, (*x_BQD.shape[:2], -1), ("batch", "length", "heads"))
        out = self.out[...].astype(joined.dtype)
        y_BQD = sharding.einsum("BQE,ED->BQD", joined, out, axes=("batch", "length", "embed"))
        return checkpoint_name(y_BQD, "out"), cache


def dot_product_attention(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, mask_BQK: jax.Array,
    bias_NQK: jax.Array | None, *, dropout: float = 0.0, key: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """softmax(q k + bias, where mask) v, softmax in float32. Returns [B, Q, N, H].

    Where the length is cut, queries stay and keys and values are gathered: exact, and the memory of the
    scores is shared.
    """
    key_BKMH, value_BKMH = (
        sharding.constrain(x, ("batch", None, "heads", None)) for x in (key_BKMH, value_BKMH)
    )
    B, Q, N, H = query_BQNH.shape
    M = key_BKMH.shape[2]
    grouped_axes = ("batch", "length", "heads", None, None)
    query = sharding.reshape(query_BQNH, (B, Q, M, N // M, H), grouped_axes)
    scores_axes = ("batch", "heads", None, "length", None)
    scores = sharding.einsum("BQMGH,BKMH->BMGQK", query, key_BKMH, axes=scores_axes, dtype=jnp.float32)
    if bias_NQK is not None:
        bias_axes = ("heads", None, "length", None)
        scores += sharding.reshape(bias_NQK, (M, N // M, *bias_NQK.shape[1:]), bias_axes)
    scores = jnp.where(mask_BQK[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_BKMH.dtype)
    weights = layers.dropout(weights, dropout, key)
    mixed = sharding.einsum("BMGQK,BKMH->BQMGH", weights, value_BKMH, axes=grouped_axes)
    return sharding.reshape(mixed, (B, Q, N, H), HEADS)


def empty_cache(num_layers: int, batch: int, length: int, num_kv_heads: int, head_dim: int, dtype) -> Cache:
    """Keys and values [layers, B, K, M, H] of a stack, all zero."""
    axes = (None, "batch", "length", "heads", "head_dim")
    shape = (num_layers, batch, length, num_kv_heads, head_dim)
    return {name: sharding.full(shape, axes, 0, dtype) for name in ("key", "value")}
