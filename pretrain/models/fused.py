"""A kernel for TPUs: attention of short rows, one head of one row at a time, whose scores stay in the core.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim. Written with Pallas. All keys of a row are there at once, so the backward pass computes the
softmax again from queries and keys, and nothing else is kept for it. The turns go over all rows of a head
before the next head: its bias is read once, and the gradient of the bias added up where it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pretrain.models.products import HIDDEN

MOST_SCORES = 512 * 512  # of a head, in float32: a core has room for half a dozen arrays of them

_ROWS = (((1,), (1,)), ((), ()))  # [Q, H] and [K, H] to [Q, K]
_MATRICES = (((1,), (0,)), ((), ()))  # [Q, K] and [K, H] to [Q, H]
_COLUMNS = (((0,), (0,)), ((), ()))  # [Q, K] and [Q, H] to [K, H]
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

# (head, row) -> where in an array that turn finds its block
_OF_HEAD, _OF_ROW = lambda head, row: (head, 0, 0), lambda head, row: (row, 0, 0)
_OWN = lambda head, row: (row, head, 0, 0)  # noqa: E731


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def mix(
    query_BNQH: jax.Array, key_BMKH: jax.Array, value_BMKH: jax.Array, query_segments_BQ: jax.Array,
    key_segments_BK: jax.Array, prefix_BK: jax.Array | None, bias_NQK: jax.Array | None, causal: bool,
    interpret: bool,
) -> jax.Array:  # fmt: skip
    """softmax(q k + bias, where a query may look) v, [B, N, Q, H]; 0 for a query that sees nothing.

    prefix: above 0 on keys that all of their segment may see. interpret: slowly, on any device.
    """
    given = (query_BNQH, key_BMKH, value_BMKH, query_segments_BQ, key_segments_BK, prefix_BK, bias_NQK)
    return _forward(*given, causal, interpret)[0]


def _forward(*arguments: Any) -> tuple[jax.Array, tuple]:
    *given, causal, interpret = arguments
    query, _, _, _, _, prefix, bias = given

    def kernel(*refs: Any) -> None:
        *operands, mixed = refs
        value = operands[2][0, 0]
        weights = _weights(operands, causal, prefix is not None, bias is not None)
        mixed[0, 0] = _dot(weights.astype(value.dtype), value, _MATRICES).astype(mixed.dtype)

    (mixed,) = _call(kernel, _operands(*given), [(query, _OWN)], interpret)
    return mixed, tuple(given)


def _backward(causal: bool, interpret: bool, given: tuple, gradient_BNQH: jax.Array) -> tuple[Any, ...]:
    query, key, value, _, _, prefix, bias = given
    (B, N, _, H), (_, M, K, _) = query.shape, key.shape
    operands = _operands(*given)

    def kernel(*refs: Any) -> None:
        inputs, rest = refs[: len(operands)], refs[len(operands) :]
        gradient, of_query, of_key, of_value, *of_bias = rest
        q, k, v, g = inputs[0][0, 0], inputs[1][0, 0], inputs[2][0, 0], gradient[0, 0]
        weights = _weights(inputs, causal, prefix is not None, bias is not None)
        of_weights = _dot(g, v, _ROWS)
        of_scores = weights * (of_weights - jnp.sum(weights * of_weights, axis=1, keepdims=True))
        low = of_scores.astype(q.dtype)
        of_query[0, 0] = _dot(low, k, _MATRICES).astype(q.dtype)
        of_key[0, 0] = _dot(low, q, _COLUMNS)
        of_value[0, 0] = _dot(weights.astype(g.dtype), g, _COLUMNS)
        if of_bias:
            _add(of_bias[0], of_scores)

    of_keys = jax.ShapeDtypeStruct((B, N, K, H), jnp.float32)
    results = [(query, _OWN), (of_keys, _OWN), (of_keys, _OWN)] + [(bias, _OF_HEAD)] * (bias is not None)
    found = _call(kernel, [*operands, (gradient_BNQH, _OWN)], results, interpret)
    of_query, *of_both = found[:3]
    of_bias = None if bias is None else found[3]
    of_key, of_value = (
        jnp.sum(x.reshape(B, M, N // M, K, H), axis=2).astype(like.dtype)
        for x, like in zip(of_both, (key, value), strict=True)
    )
    return of_query, of_key, of_value, None, None, None, of_bias


mix.defvjp(_forward, _backward)


def _add(total: Any, of_scores: jax.Array) -> None:
    """To what the rows before have added up, for the same head."""

    @pl.when(pl.program_id(1) == 0)
    def first() -> None:
        total[...] = jnp.zeros_like(total)

    total[0] += of_scores


def _operands(query, key, value, query_segments, key_segments, prefix, bias) -> list[tuple[Any, Callable]]:
    """Each with where a turn finds its block of it."""
    shared = query.shape[1] // key.shape[1]

    def of_key_head(head, row):
        return row, head // shared, 0, 0

    found = [(query, _OWN), (key, of_key_head), (value, of_key_head)]
    found += [(query_segments[:, :, None], _OF_ROW), (key_segments[:, None], _OF_ROW)]
    found += [] if prefix is None else [(prefix[:, None], _OF_ROW)]
    return found + ([] if bias is None else [(bias, _OF_HEAD)])


def _weights(operands: Sequence[Any], causal: bool, with_prefix: bool, with_bias: bool) -> jax.Array:
    """The softmax of a head of a row, float32 [Q, K]; 0 where a query must not see."""
    query, key, _, query_segments, key_segments, *rest = operands
    scores = _dot(query[0, 0], key[0, 0], _ROWS)
    if with_bias:
        scores += rest[-1][0]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    seen = jnp.broadcast_to(query_segments[0], scores.shape) == jnp.broadcast_to(
        key_segments[0], scores.shape
    )
    if causal and with_prefix:
        seen &= (row >= column) | (jnp.broadcast_to(rest[0][0], scores.shape) > 0)
    elif causal:
        seen &= row >= column
    scores = jnp.where(seen, scores, HIDDEN)
    highest = jnp.max(scores, axis=1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(highest > HIDDEN, highest, 0.0))
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(sums > 0, sums, 1.0)


def _call(
    kernel: Callable, operands: Sequence[tuple], results: Sequence[tuple], interpret: bool
) -> list[jax.Array]:
    def block(array: Any, where: Callable) -> pl.BlockSpec:
        return pl.BlockSpec((1,) * (array.ndim - 2) + array.shape[-2:], where)

    B, N = operands[0][0].shape[:2]
    return pl.pallas_call(
        kernel,
        grid=(N, B),
        in_specs=[block(*each) for each in operands],
        out_specs=[block(*each) for each in results],
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like, _ in results],
        # Turns of a head follow each other, since they add to one gradient of a bias; heads share out.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*(array for array, _ in operands))
