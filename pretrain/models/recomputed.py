"""Attention whose backward pass computes the scores again, from what the softmax divided by.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim. Kept of the forward pass: queries, keys, values, what they mix to, and the logarithm of each
softmax's sum. That is the backward pass of FlashAttention (https://arxiv.org/abs/2205.14135, algorithm 4)
without its tiles: the sum over keys of weight times gradient is one over head_dim, of result times gradient.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.models import layers
from pretrain.models.masks import Offset, Seen, bias_of, mask_of
from pretrain.parallel import sharding

HEADS = ("batch", "length", "heads", "head_dim")
_GROUPED = ("batch", "length", "heads", None, None)
_HIDDEN = float(jnp.finfo(jnp.float32).min)
_SCORES = ("batch", "heads", None, "length", None)


def scores(query_BQNH: jax.Array, key_BKMH: jax.Array, seen: Seen, bias: Offset) -> jax.Array:
    """Float32 [B, M, G, Q, K], the lowest number where a query must not see a key."""
    query = grouped(query_BQNH, key_BKMH.shape[2])
    products = sharding.einsum("BQMGH,BKMH->BMGQK", query, key_BKMH, axes=_SCORES, dtype=jnp.float32)
    if (bias_NQK := bias_of(bias)) is not None:
        products += sharding.reshape(bias_NQK, products.shape[1:], _SCORES[1:])
    return jnp.where(mask_of(seen)[:, None, None], products, _HIDDEN)


def weighted(weights_BMGQK: jax.Array, value_BKMH: jax.Array) -> jax.Array:
    """The values mixed, [B, Q, N, H]."""
    mixed = sharding.einsum("BMGQK,BKMH->BQMGH", weights_BMGQK, value_BKMH, axes=_GROUPED)
    return sharding.reshape(mixed, (*mixed.shape[:2], -1, mixed.shape[-1]), HEADS)


def grouped(x_BQNH: jax.Array, key_heads: int) -> jax.Array:
    """[B, Q, M, G, H]: the heads by the key head that they share."""
    B, Q, N, H = x_BQNH.shape
    return sharding.reshape(x_BQNH, (B, Q, key_heads, N // key_heads, H), _GROUPED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def mix(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset,
    key: jax.Array | None, dropout: float,
) -> jax.Array:  # fmt: skip
    """softmax(scores) v, [B, Q, N, H]; 0 for a query that sees nothing, where a softmax would give a mean.

    The products of the gradients are in the operands' dtype.
    """
    return _forward(query_BQNH, key_BKMH, value_BKMH, seen, bias, key, dropout)[0]


def _forward(
    query: jax.Array, keys: jax.Array, value: jax.Array, seen: Seen, bias: Offset, key: jax.Array | None,
    dropout: float,
) -> tuple[jax.Array, tuple]:  # fmt: skip
    raw = scores(query, keys, seen, bias)
    log_sums_BMGQ1 = jax.nn.logsumexp(raw, axis=-1, keepdims=True)
    weights = layers.dropout(_weights(raw, log_sums_BMGQ1).astype(value.dtype), dropout, key)
    mixed = weighted(weights, value)
    return mixed, (query, keys, value, seen, bias, key, mixed, log_sums_BMGQ1)


def _backward(dropout: float, kept: tuple, gradient_BQNH: jax.Array) -> tuple[Any, ...]:
    query, keys, value, seen, bias, key, mixed, log_sums_BMGQ1 = kept
    of_kept = functools.partial(layers.dropout, rate=dropout, key=key)  # linear, and its own transpose
    gradient = grouped(gradient_BQNH, value.shape[2])
    weights = _weights(scores(query, keys, seen, bias), log_sums_BMGQ1)
    of_weights = sharding.einsum("BQMGH,BKMH->BMGQK", gradient, value, axes=_SCORES, dtype=jnp.float32)
    along = jnp.sum(gradient.astype(jnp.float32) * grouped(mixed, value.shape[2]), axis=-1)
    of_scores = weights * (of_kept(of_weights) - along.transpose(0, 2, 3, 1)[..., None])
    low = of_scores.astype(query.dtype)
    _, to_bias = jax.vjp(bias_of, bias)
    of_bias = None if bias is None else jnp.sum(of_scores, axis=0).reshape(-1, *of_scores.shape[3:])
    return (
        weighted(low, keys),
        _over_queries(grouped(query, keys.shape[2]), low),
        _over_queries(gradient, of_kept(weights.astype(value.dtype))),
        None,
        *to_bias(of_bias),
        None,
    )


def _weights(raw: jax.Array, log_sums: jax.Array) -> jax.Array:
    """The softmax; 0 where a query must not see, also of one that sees nothing, such as padding."""
    return jnp.where(raw > _HIDDEN, jnp.exp(raw - log_sums), 0.0)


def _over_queries(x_BQMGH: jax.Array, weights_BMGQK: jax.Array) -> jax.Array:
    """[B, K, M, H]. Computed as [H, K], so that XLA's CPU compiler transposes the smaller operand."""
    axes = ("batch", "heads", None, None)
    return sharding.einsum("BQMGH,BMGQK->BMHK", x_BQMGH, weights_BMGQK, axes=axes).transpose(0, 3, 1, 2)


mix.defvjp(_forward, _backward)
