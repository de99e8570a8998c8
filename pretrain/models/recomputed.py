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
from jax.ad_checkpoint import checkpoint_name

from pretrain.models import layers
from pretrain.models.masks import Offset, Seen, bias_of
from pretrain.models.products import (
    HIDDEN,
    by_head,
    by_query_head,
    grouped,
    over_queries,
    scores,
    ungrouped,
    weighted,
    with_keys,
)  # fmt: skip


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
    raw = scores(grouped(query, keys.shape[2]), by_head(keys), seen, bias)
    highest = jnp.max(raw, axis=-1, keepdims=True)
    sees = highest > HIDDEN
    highest = jnp.where(sees, highest, 0.0)  # then what is hidden has a weight of 0, also where all is
    weights_BMQGK = jnp.exp(raw - highest)
    sums = jnp.where(sees, jnp.sum(weights_BMQGK, axis=-1, keepdims=True), 1.0)
    weights_BMQGK = layers.dropout(weights_BMQGK, dropout, key).astype(value.dtype)
    # Named here: what `remat` may keep has to be what the backward pass asks for, and not a copy of it.
    unnormed_BMQGH = weighted(weights_BMQGK, by_head(value), dtype=jnp.float32)
    mixed = checkpoint_name(ungrouped((unnormed_BMQGH / sums).astype(value.dtype)), "mixed")
    log_sums_BMQG1 = checkpoint_name(highest + jnp.log(sums), "mixed")
    return mixed, (query, keys, value, seen, bias, key, mixed, log_sums_BMQG1)


def _backward(dropout: float, kept: tuple, gradient_BQNH: jax.Array) -> tuple[Any, ...]:
    query, keys, value, seen, bias, key, mixed, log_sums_BMQG1 = kept
    M = keys.shape[2]
    of_kept = functools.partial(layers.dropout, rate=dropout, key=key)  # linear, and its own transpose
    queries, gradient = grouped(query, M), grouped(gradient_BQNH, M)
    weights = jnp.exp(scores(queries, by_head(keys), seen, bias) - log_sums_BMQG1)
    of_weights = with_keys(gradient, by_head(value))
    along = jnp.sum(gradient.astype(jnp.float32) * grouped(mixed, M), axis=-1, keepdims=True)
    along = jax.lax.optimization_barrier(along)  # XLA's CPU compiler puts the sum into the product above
    of_scores = weights * (of_kept(of_weights) - along)
    low = of_scores.astype(query.dtype)
    _, to_bias = jax.vjp(bias_of, bias)
    of_bias = None if bias is None else by_query_head(jnp.sum(of_scores, axis=0))
    return (
        ungrouped(weighted(low, by_head(keys))),
        over_queries(queries, low),
        over_queries(gradient, of_kept(weights).astype(value.dtype)),
        None,
        *to_bias(of_bias),
        None,
    )


mix.defvjp(_forward, _backward)
