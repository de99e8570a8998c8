"""The products of attention: queries with keys, and weights with values.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim.
"""

import jax
import jax.numpy as jnp

from pretrain.models.masks import Offset, Seen, bias_of, mask_of
from pretrain.parallel import sharding

HEADS = ("batch", "length", "heads", "head_dim")
SCORES = ("batch", "heads", None, "length", None)
HIDDEN = float(jnp.finfo(jnp.float32).min)
_GROUPED = ("batch", "length", "heads", None, None)


def scores(query_BQNH: jax.Array, key_BKMH: jax.Array, seen: Seen, bias: Offset) -> jax.Array:
    """Float32 [B, M, G, Q, K], the lowest number where a query must not see a key."""
    query = grouped(query_BQNH, key_BKMH.shape[2])
    products = sharding.einsum("BQMGH,BKMH->BMGQK", query, key_BKMH, axes=SCORES, dtype=jnp.float32)
    if (bias_NQK := bias_of(bias)) is not None:
        products += sharding.reshape(bias_NQK, products.shape[1:], SCORES[1:])
    return jnp.where(mask_of(seen)[:, None, None], products, HIDDEN)


def weighted(weights_BMGQK: jax.Array, value_BKMH: jax.Array) -> jax.Array:
    """The values mixed, [B, Q, N, H]."""
    mixed = sharding.einsum("BMGQK,BKMH->BQMGH", weights_BMGQK, value_BKMH, axes=_GROUPED)
    return sharding.reshape(mixed, (*mixed.shape[:2], -1, mixed.shape[-1]), HEADS)


def grouped(x_BQNH: jax.Array, key_heads: int) -> jax.Array:
    """[B, Q, M, G, H]: the heads by the key head that they share."""
    B, Q, N, H = x_BQNH.shape
    return sharding.reshape(x_BQNH, (B, Q, key_heads, N // key_heads, H), _GROUPED)
