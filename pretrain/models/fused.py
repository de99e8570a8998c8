"""A kernel for TPUs: attention of short rows, a few heads of a row at a time, whose scores stay in the core.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, H head_dim, P heads of a turn, X = N x H and
Y = M x H: heads beside each other. Written with Pallas. All keys of a row are there at once, so the backward
pass computes the softmax again from queries and keys, and nothing else is kept for it. Heads lie as the
products with weights make them: no array is transposed, and a turn reads as many as fill the lanes of the
core. The turns go over all rows before the next heads: their bias is read once, and the gradient of the bias
added up where it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pretrain.models.products import HIDDEN

LANES = 128  # what the sizes of a TPU's kernels are multiples of
MOST_SCORES = 512 * 512  # of a head, in float32: a core has room for half a dozen arrays, and biases of two

_ROWS = (((1,), (1,)), ((), ()))  # [Q, H] and [K, H] to [Q, K]
_MATRICES = (((1,), (0,)), ((), ()))  # [Q, K] and [K, H] to [Q, H]
_COLUMNS = (((0,), (0,)), ((), ()))  # [Q, K] and [Q, H] to [K, H]
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

# (turn, row) -> where in an array that turn finds its block
_OF_HEADS, _OF_ROW = lambda turn, row: (turn, 0, 0), lambda turn, row: (row, 0, 0)
_OWN = lambda turn, row: (row, 0, turn)  # noqa: E731


def heads_of_a_turn(N: int, H: int) -> int:
    """As many as fill the lanes, or all; beside N that it does not divide, heads of zeros are put.

    H divides LANES, or is a multiple of it.

    >>> heads_of_a_turn(12, 64), heads_of_a_turn(3, 64), heads_of_a_turn(8, 128), heads_of_a_turn(1, 64)
    (2, 2, 1, 1)
    """
    return min(N, max(1, LANES // H))


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def mix(
    query_BQX: jax.Array, key_BKY: jax.Array, value_BKY: jax.Array, query_segments_BQ: jax.Array,
    key_segments_BK: jax.Array, prefix_BK: jax.Array | None, bias_NQK: jax.Array | None, heads: int,
    causal: bool, interpret: bool,
) -> jax.Array:  # fmt: skip
    """softmax(q k + bias, where a query may look) v, [B, Q, X]; 0 for a query that sees nothing.

    prefix: above 0 on keys that all of their segment may see. heads: N. interpret: slowly, on any device.
    """
    given = (query_BQX, key_BKY, value_BKY, query_segments_BQ, key_segments_BK, prefix_BK, bias_NQK)
    return _forward(*given, heads, causal, interpret)[0]


def _forward(*arguments: Any) -> tuple[jax.Array, tuple]:
    *given, heads, causal, interpret = arguments
    operands, H, X = _operands(given, heads), given[0].shape[2] // heads, given[0].shape[2]
    prefix, bias = given[5:]

    def kernel(*refs: Any) -> None:
        *inputs, mixed = refs
        seen = _seen(inputs, causal, prefix is not None)
        for head, lanes in _heads(heads, H):
            value = inputs[2][0, :, lanes]
            weights = _weights(inputs, seen, head, lanes, bias is not None)
            mixed[0, :, lanes] = _dot(weights.astype(value.dtype), value, _MATRICES).astype(mixed.dtype)

    (mixed,) = _call(kernel, heads, H, 2, operands, [operands[0]], interpret)
    return mixed[..., :X], tuple(given)


def _backward(
    heads: int, causal: bool, interpret: bool, given: tuple, gradient_BQX: jax.Array
) -> tuple[Any, ...]:
    query, key, value, *_, prefix, bias = given
    operands, H, X = _operands(given, heads), query.shape[2] // heads, query.shape[2]

    def kernel(*refs: Any) -> None:
        inputs, rest = refs[: len(operands)], refs[len(operands) :]
        gradient, of_query, of_key, of_value, *of_bias = rest
        seen = _seen(inputs, causal, prefix is not None)
        for head, lanes in _heads(heads, H):
            q, k, v, g = (ref[0, :, lanes] for ref in (*inputs[:3], gradient))
            weights = _weights(inputs, seen, head, lanes, bias is not None)
            of_weights = _dot(g, v, _ROWS)
            of_scores = weights * (of_weights - jnp.sum(weights * of_weights, axis=1, keepdims=True))
            low = of_scores.astype(q.dtype)
            of_query[0, :, lanes] = _dot(low, k, _MATRICES).astype(q.dtype)
            of_key[0, :, lanes] = _dot(low, q, _COLUMNS).astype(of_key.dtype)
            of_value[0, :, lanes] = _dot(weights.astype(g.dtype), g, _COLUMNS).astype(of_value.dtype)
            if of_bias:
                _add(of_bias[0], head, of_scores)

    # Of a key head that queries share, each of them gives a part, which are added up in float32.
    whole = key.dtype if key.shape[2] == X else jnp.float32
    of_keys = (jax.ShapeDtypeStruct(operands[1][0].shape, whole), _OWN)
    results = [operands[0], of_keys, of_keys] + [operands[-1]] * (bias is not None)
    gradient = _beside(gradient_BQX, heads, heads)
    of_query, of_key, of_value, *of_bias = _call(
        kernel, heads, H, 5, [*operands, (gradient, _OWN)], results, interpret
    )
    return (
        of_query[..., :X], _shared(of_key[..., :X], key, H), _shared(of_value[..., :X], value, H),
        None, None, None, of_bias[0][:heads] if of_bias else None,
    )  # fmt: skip


mix.defvjp(_forward, _backward)


def _heads(heads: int, H: int) -> list[tuple[int, slice]]:
    """Those of a turn, each with its lanes."""
    return [(head, slice(head * H, (head + 1) * H)) for head in range(heads_of_a_turn(heads, H))]


def _beside(x_BKY: jax.Array, own: int, heads: int) -> jax.Array:
    """[B, K, turns x P x H]: the `own` heads of x, once for each of `heads`, and zeros to fill a turn."""
    B, K, Y = x_BKY.shape
    if own != heads:
        each = x_BKY.reshape(B, K, own, 1, Y // own)
        x_BKY = jnp.broadcast_to(each, (B, K, own, heads // own, Y // own)).reshape(B, K, -1)
    missing = -heads % heads_of_a_turn(heads, Y // own) * (Y // own)
    return jnp.pad(x_BKY, ((0, 0), (0, 0), (0, missing))) if missing else x_BKY


def _shared(of_each_BKX: jax.Array, like_BKY: jax.Array, H: int) -> jax.Array:
    """The gradient of heads that queries share: the sum over those that do."""
    B, K, Y = like_BKY.shape
    of_own = jnp.sum(of_each_BKX.reshape(B, K, Y // H, -1, H), axis=3)
    return of_own.reshape(B, K, Y).astype(like_BKY.dtype)


def _add(total: Any, head: int, of_scores: jax.Array) -> None:
    """To what the rows before have added up, for the same head."""

    @pl.when(pl.program_id(1) == 0)
    def first() -> None:
        total[head] = jnp.zeros_like(of_scores)

    total[head] += of_scores


def _operands(given: Sequence[Any], heads: int) -> list[tuple[Any, Callable]]:
    """Each with where a turn finds its block of it."""
    query, key, value, query_segments, key_segments, prefix, bias = given
    H = query.shape[2] // heads
    found = [(_beside(x, x.shape[2] // H, heads), _OWN) for x in (query, key, value)]
    found += [(query_segments[:, :, None], _OF_ROW), (key_segments[:, None], _OF_ROW)]
    found += [] if prefix is None else [(prefix[:, None], _OF_ROW)]
    if bias is None:
        return found
    missing = -heads % heads_of_a_turn(heads, H)
    return [*found, (jnp.pad(bias, ((0, missing), (0, 0), (0, 0))) if missing else bias, _OF_HEADS)]


def _seen(operands: Sequence[Any], causal: bool, with_prefix: bool) -> jax.Array:
    """bool [Q, K] of a row: whom a query may look at."""
    query_segments, key_segments, *rest = operands[3:]
    shape = query_segments.shape[1], key_segments.shape[2]
    seen = jnp.broadcast_to(query_segments[0], shape) == jnp.broadcast_to(key_segments[0], shape)
    if not causal:
        return seen
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    before = row >= column
    if with_prefix:
        before |= jnp.broadcast_to(rest[0][0], shape) > 0
    return seen & before


def _weights(operands: Sequence[Any], seen: jax.Array, head: int, lanes: slice, with_bias: bool) -> jax.Array:
    """The softmax of a head of a row, float32 [Q, K]; 0 where a query must not see."""
    query, key = operands[:2]
    scores = _dot(query[0, :, lanes], key[0, :, lanes], _ROWS)
    if with_bias:
        scores += operands[-1][head]
    scores = jnp.where(seen, scores, HIDDEN)
    highest = jnp.max(scores, axis=1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(highest > HIDDEN, highest, 0.0))
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(sums > 0, sums, 1.0)


def _call(
    kernel: Callable, heads: int, H: int, products: int, operands: Sequence[tuple], results: Sequence[tuple],
    interpret: bool,
) -> list[jax.Array]:  # fmt: skip
    """What the kernel gives. products: of a head, with all its scores; XLA is told what they cost."""
    (B, Q, X), K, P = operands[0][0].shape, operands[1][0].shape[1], heads_of_a_turn(heads, H)

    def block(array: Any, where: Callable) -> pl.BlockSpec:
        _, second, last = array.shape
        if where is _OWN:
            return pl.BlockSpec((1, second, P * H), where)
        return pl.BlockSpec((P if where is _OF_HEADS else 1, second, last), where)

    arrays = [like for like, _ in (*operands, *results)]
    cost = pl.CostEstimate(
        flops=products * 2 * B * Q * K * X,
        transcendentals=B * Q * K * X // H,
        bytes_accessed=sum(like.size * like.dtype.itemsize for like in arrays),
    )
    return pl.pallas_call(
        kernel,
        grid=(X // (P * H), B),
        in_specs=[block(*each) for each in operands],
        out_specs=[block(*each) for each in results],
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like, _ in results],
        # Turns of some heads follow each other, since they add to one gradient of a bias; heads share out.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
    )(*(array for array, _ in operands))
