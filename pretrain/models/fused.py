"""A kernel for TPUs: attention of short rows, a few heads of a row at a time, whose scores stay in the core.

Shapes: B batch, Q queries, K keys, N heads, H head_dim, P heads of a turn. Written with Pallas. All keys of a
row are there at once, so the backward pass computes the softmax again from queries and keys, and nothing
else is kept for it. Heads lie beside each other, as the products with weights make them: no array is
transposed, and a turn reads as many as fill the lanes of the core. The turns go over all rows before the next
heads: their bias is read once, and the gradient of the bias added up where it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pretrain.models.products import HIDDEN

LANES = 128
MOST_SCORES = 512 * 512  # of a head, in float32: a core has room for half a dozen arrays, and biases of two

_ROWS = (((1,), (1,)), ((), ()))  # [Q, H] and [K, H] to [Q, K]
_MATRICES = (((1,), (0,)), ((), ()))  # [Q, K] and [K, H] to [Q, H]
_COLUMNS = (((0,), (0,)), ((), ()))  # [Q, K] and [Q, H] to [K, H]
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

# (turn, row) -> where in an array that turn finds its block
_OF_HEADS, _OF_ROW = lambda turn, row: (turn, 0, 0), lambda turn, row: (row, 0, 0)
_OWN = lambda turn, row: (row, 0, turn)  # noqa: E731


def heads_of_a_turn(N: int, H: int) -> int:
    """As few as fill whole lanes, or all of them.

    >>> heads_of_a_turn(12, 64), heads_of_a_turn(3, 64), heads_of_a_turn(8, 128)
    (2, 3, 1)
    """
    return next((P for P in range(1, N) if N % P == 0 and P * H % LANES == 0), N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def mix(
    query_BQX: jax.Array, key_BKX: jax.Array, value_BKX: jax.Array, query_segments_BQ: jax.Array,
    key_segments_BK: jax.Array, prefix_BK: jax.Array | None, bias_NQK: jax.Array | None, heads: int,
    causal: bool, interpret: bool,
) -> jax.Array:  # fmt: skip
    """softmax(q k + bias, where a query may look) v; 0 for a query that sees nothing. X: N heads x H.

    prefix: above 0 on keys that all of their segment may see. heads: N. interpret: slowly, on any device.
    """
    given = (query_BQX, key_BKX, value_BKX, query_segments_BQ, key_segments_BK, prefix_BK, bias_NQK)
    return _forward(*given, heads, causal, interpret)[0]


def _forward(*arguments: Any) -> tuple[jax.Array, tuple]:
    *given, heads, causal, interpret = arguments
    query = given[0]

    def kernel(*refs: Any) -> None:
        *operands, mixed = refs
        seen = _seen(operands, given, causal)
        for head, lanes in _heads(query, heads):
            value = operands[2][0, :, lanes]
            weights = _weights(operands, given, seen, head, lanes)
            mixed[0, :, lanes] = _dot(weights.astype(value.dtype), value, _MATRICES).astype(mixed.dtype)

    (mixed,) = _call(kernel, heads, 2, _operands(*given), [(query, _OWN)], interpret)
    return mixed, tuple(given)


def _backward(
    heads: int, causal: bool, interpret: bool, given: tuple, gradient_BQX: jax.Array
) -> tuple[Any, ...]:
    query, key, value, *_, bias = given
    operands = _operands(*given)

    def kernel(*refs: Any) -> None:
        inputs, rest = refs[: len(operands)], refs[len(operands) :]
        gradient, of_query, of_key, of_value, *of_bias = rest
        seen = _seen(inputs, given, causal)
        for head, lanes in _heads(query, heads):
            q, k, v, g = (ref[0, :, lanes] for ref in (*inputs[:3], gradient))
            weights = _weights(inputs, given, seen, head, lanes)
            of_weights = _dot(g, v, _ROWS)
            of_scores = weights * (of_weights - jnp.sum(weights * of_weights, axis=1, keepdims=True))
            low = of_scores.astype(q.dtype)
            of_query[0, :, lanes] = _dot(low, k, _MATRICES).astype(q.dtype)
            of_key[0, :, lanes] = _dot(low, q, _COLUMNS).astype(k.dtype)
            of_value[0, :, lanes] = _dot(weights.astype(g.dtype), g, _COLUMNS).astype(v.dtype)
            if of_bias:
                _add(of_bias[0], head, of_scores)

    results = [(query, _OWN), (key, _OWN), (value, _OWN)] + [(bias, _OF_HEADS)] * (bias is not None)
    found = _call(kernel, heads, 5, [*operands, (gradient_BQX, _OWN)], results, interpret)
    return *found[:3], None, None, None, None if bias is None else found[3]


mix.defvjp(_forward, _backward)


def _heads(query_BQX: jax.Array, heads: int) -> list[tuple[int, slice]]:
    """Those of a turn, each with its lanes."""
    H = query_BQX.shape[2] // heads
    return [(head, slice(head * H, (head + 1) * H)) for head in range(heads_of_a_turn(heads, H))]


def _add(total: Any, head: int, of_scores: jax.Array) -> None:
    """To what the rows before have added up, for the same head."""

    @pl.when(pl.program_id(1) == 0)
    def first() -> None:
        total[head] = jnp.zeros_like(of_scores)

    total[head] += of_scores


def _operands(query, key, value, query_segments, key_segments, prefix, bias) -> list[tuple[Any, Callable]]:
    """Each with where a turn finds its block of it."""
    found = [(query, _OWN), (key, _OWN), (value, _OWN)]
    found += [(query_segments[:, :, None], _OF_ROW), (key_segments[:, None], _OF_ROW)]
    found += [] if prefix is None else [(prefix[:, None], _OF_ROW)]
    return found + ([] if bias is None else [(bias, _OF_HEADS)])


def _seen(operands: Sequence[Any], given: Sequence[Any], causal: bool) -> jax.Array:
    """bool [Q, K] of a row: whom a query may look at."""
    query_segments, key_segments, *rest = operands[3:]
    shape = query_segments.shape[1], key_segments.shape[2]
    seen = jnp.broadcast_to(query_segments[0], shape) == jnp.broadcast_to(key_segments[0], shape)
    if not causal:
        return seen
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    before = row >= column
    if given[5] is not None:
        before |= jnp.broadcast_to(rest[0][0], shape) > 0
    return seen & before


def _weights(
    operands: Sequence[Any], given: Sequence[Any], seen: jax.Array, head: int, lanes: slice
) -> jax.Array:
    """The softmax of a head of a row, float32 [Q, K]; 0 where a query must not see."""
    query, key = operands[:2]
    scores = _dot(query[0, :, lanes], key[0, :, lanes], _ROWS)
    if given[6] is not None:
        scores += operands[-1][head]
    scores = jnp.where(seen, scores, HIDDEN)
    highest = jnp.max(scores, axis=1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(highest > HIDDEN, highest, 0.0))
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(sums > 0, sums, 1.0)


def _call(
    kernel: Callable, heads: int, products: int, operands: Sequence[tuple], results: Sequence[tuple],
    interpret: bool,
) -> list[jax.Array]:  # fmt: skip
    """What the kernel gives. products: of a head, with all its scores; XLA is told what they cost."""
    (B, Q, X), K = operands[0][0].shape, operands[1][0].shape[1]
    P = heads_of_a_turn(heads, X // heads)

    def block(array: Any, where: Callable) -> pl.BlockSpec:
        _, second, last = array.shape
        if where is _OWN:
            return pl.BlockSpec((1, second, last * P // heads), where)
        return pl.BlockSpec((P if where is _OF_HEADS else 1, second, last), where)

    arrays = [like for like, _ in (*operands, *results)]
    cost = pl.CostEstimate(
        flops=products * 2 * B * Q * K * X,
        transcendentals=B * heads * Q * K,
        bytes_accessed=sum(like.size * like.dtype.itemsize for like in arrays),
    )
    return pl.pallas_call(
        kernel,
        grid=(heads // P, B),
        in_specs=[block(*each) for each in operands],
        out_specs=[block(*each) for each in results],
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like, _ in results],
        # Turns of some heads follow each other, since they add to one gradient of a bias; heads share out.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
    )(*(array for array, _ in operands))
