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
from pretrain.models.products import HIDDEN, SCORES, grouped, scores, weighted
from pretrain.parallel import sharding


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
    # Named here: what `remat` may keep has to be what the backward pass asks for, and not a copy of it.
    log_sums_BMGQ1 = checkpoint_name(jax.nn.logsumexp(raw, axis=-1, keepdims=True), "mixed")
    weights = layers.dropout(_weights(raw, log_sums_BMGQ1).astype(value.dtype), dropout, key)
    mixed = checkpoint_name(weighted(weights, value), "mixed")
    return mixed, (query, keys, value, seen, bias, key, mixed, log_sums_BMGQ1)


def _backward(dropout: float, kept: tuple, gradient_BQNH: jax.Array) -> tuple[Any, ...]:
    query, keys, value, seen, bias, key, mixed, log_sums_BMGQ1 = kept
    of_kept = functools.partial(layers.dropout, rate=dropout, key=key)  # linear, and its own transpose
    gradient = grouped(gradient_BQNH, value.shape[2])
    weights = _weights(scores(query, keys, seen, bias), log_sums_BMGQ1)
    of_weights = sharding.einsum("BQMGH,BKMH->BMGQK", gradient, value, axes=SCORES, dtype=jnp.float32)
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
    return jnp.where(raw > HIDDEN, jnp.exp(raw - log_sums), 0.0)


def _over_queries(x_BQMGH: jax.Array, weights_BMGQK: jax.Array) -> jax.Array:
    """[B, K, M, H]. Computed as [H, K], so that XLA's CPU compiler transposes the smaller operand."""
    axes = ("batch", "heads", None, None)
    return sharding.einsum("BQMGH,BMGQK->BMHK", x_BQMGH, weights_BMGQK, axes=axes).transpose(0, 3, 1, 2)


mix.defvjp(_forward, _backward)
