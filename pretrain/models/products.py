"""The products of attention: queries with keys, and weights with values.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim. Heads come before positions here, and scores are [B, M, Q, G, K]: the order in which a product of
matrices gives them. In any other, XLA's CPU compiler reads them across each time that it reads them.
"""

import jax
import jax.numpy as jnp

from pretrain.models.masks import Offset, Seen, bias_of, mask_of
from pretrain.parallel import sharding

HEADS = ("batch", "length", "heads", "head_dim")
HIDDEN = float(jnp.finfo(jnp.float32).min)
_GROUPED = ("batch", "length", "heads", None, None)
_BY_HEAD = ("batch", "heads", "length", None, None)


def grouped(x_BQNH: jax.Array, key_heads: int) -> jax.Array:
    """[B, M, Q, G, H]: queries, or gradients of what they mixed, by the key head that they share."""
    B, Q, N, H = x_BQNH.shape
    x_BQMGH = sharding.reshape(x_BQNH, (B, Q, key_heads, N // key_heads, H), _GROUPED)
    return x_BQMGH.transpose(0, 2, 1, 3, 4)


def ungrouped(x_BMQGH: jax.Array) -> jax.Array:
    """[B, Q, N, H], the inverse of `grouped`."""
    x_BQMGH = x_BMQGH.transpose(0, 2, 1, 3, 4)
    B, Q, M, G, H = x_BQMGH.shape
    return sharding.reshape(x_BQMGH, (B, Q, M * G, H), HEADS)


def by_head(x_BKMH: jax.Array) -> jax.Array:
    """[B, M, K, H]: keys or values."""
    return x_BKMH.transpose(0, 2, 1, 3)


def scores(query_BMQGH: jax.Array, key_BMKH: jax.Array, seen: Seen, bias: Offset) -> jax.Array:
    """Float32 [B, M, Q, G, K], the lowest number where a query must not see a key."""
    products = with_keys(query_BMQGH, key_BMKH)
    if (bias_NQK := bias_of(bias)) is not None:
        _, M, Q, G, K = products.shape
        bias_MGQK = sharding.reshape(bias_NQK, (M, G, Q, K), ("heads", None, "length", None))
        products += bias_MGQK.transpose(0, 2, 1, 3)
    return jnp.where(mask_of(seen)[:, None, :, None], products, HIDDEN)


def by_query_head(scores_MQGK: jax.Array) -> jax.Array:
    """[N, Q, K], as a bias is."""
    M, Q, G, K = scores_MQGK.shape
    return sharding.reshape(scores_MQGK.transpose(0, 2, 1, 3), (M * G, Q, K), ("heads", "length", None))


def with_keys(x_BMQGH: jax.Array, key_BMKH: jax.Array) -> jax.Array:
    """Float32 [B, M, Q, G, K]: queries with keys, or gradients with values."""
    return sharding.einsum("BMQGH,BMKH->BMQGK", x_BMQGH, key_BMKH, axes=_BY_HEAD, dtype=jnp.float32)


def weighted(weights_BMQGK: jax.Array, value_BMKH: jax.Array, dtype=None) -> jax.Array:
    """The values mixed, [B, M, Q, G, H]."""
    return sharding.einsum("BMQGK,BMKH->BMQGH", weights_BMQGK, value_BMKH, axes=_BY_HEAD, dtype=dtype)


def over_queries(x_BMQGH: jax.Array, weights_BMQGK: jax.Array) -> jax.Array:
    """[B, K, M, H]. Computed as [H, K], so that XLA's CPU compiler transposes the smaller operand."""
    axes = ("batch", "heads", None, None)
    # G is called R: einsum sums in the order of the alphabet, and the arrays lie in this one.
    return sharding.einsum("BMQRH,BMQRK->BMHK", x_BMQGH, weights_BMQGK, axes=axes).transpose(0, 3, 1, 2)
