"""Who may look at whom, and at what distance: said in short, and written out where a backend wants it so.

Shapes: B batch, Q queries, K keys, N heads. Written out, a mask is bool [B, Q, K], True where a query sees
a key, and a bias is float32 [N, Q, K]: of long rows these would be the largest arrays of a model.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from pretrain.parallel import sharding


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """A query sees the keys of its segment; of a causal mask, those up to itself and those of the prefix; of
    an ordered one, those whose order is at most its own, or below it where that is strict.

    query_segments, key_segments: int32, 0 on padding, which sees and is seen by padding alone, so that no
        softmax is empty; its outputs carry no loss.
    query_positions: in the row; keys are at 0, 1, 2, ...
    prefix: above 0 on keys that all of their segment may see.
    query_order, key_order: int32, of an ordered mask. A strict one may leave a query nothing to see.

    >>> segments = jnp.array([[1, 1, 2]])
    >>> Mask.of(segments, causal=True).written_out().astype(int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    >>> ordered = Mask.of(jnp.array([[1, 1, 1]]), order_BL=jnp.array([[-1, 1, 0]]), strict=True)
    >>> ordered.written_out().astype(int)[0].tolist()
    [[0, 0, 0], [1, 0, 1], [1, 0, 0]]
    """

    query_segments: jax.Array
    key_segments: jax.Array
    query_positions: jax.Array
    prefix: jax.Array | None = None
    query_order: jax.Array | None = None
    key_order: jax.Array | None = None
    causal: bool = _static()
    strict: bool = _static()

    @classmethod
    def of(
        cls, query_segments_BQ: jax.Array, key_segments_BK: jax.Array | None = None, *,
        causal: bool = False, prefix_BK: jax.Array | None = None, order_BL: jax.Array | None = None,
        strict: bool = False,
    ) -> Self:  # fmt: skip
        """The mask of whole rows; without keys, rows look at themselves. An order is of such rows."""
        keys = query_segments_BQ if key_segments_BK is None else key_segments_BK
        whole = ("batch", None)  # every query looks at all keys, wherever the length is cut
        return cls(
            query_segments=query_segments_BQ,
            key_segments=sharding.constrain(keys, whole),
            query_positions=jnp.arange(query_segments_BQ.shape[1]),
            prefix=None if prefix_BK is None else sharding.constrain(prefix_BK, whole),
            query_order=order_BL,
            key_order=None if order_BL is None else sharding.constrain(order_BL, whole),
            causal=causal,
            strict=strict,
        )

    def written_out(self) -> jax.Array:
        """bool [B, Q, K]"""
        seen_BQK = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        if self.query_order is not None and self.key_order is not None:
            compare = jnp.greater if self.strict else jnp.greater_equal
            seen_BQK &= compare(self.query_order[:, :, None], self.key_order[:, None, :])
        if not self.causal:
            return seen_BQK
        before_BQK = (self.query_positions[:, None] >= jnp.arange(self.key_segments.shape[1]))[None]
        if self.prefix is not None:
            before_BQK |= self.prefix[:, None] > 0
        return seen_BQK & before_BQK

    def rows(self, number: int) -> "Parts":
        """What it says of the rows of the batch, cut into so many parts."""
        of_queries, of_keys = self._arrays(OF_QUERIES), self._arrays(OF_KEYS)
        own = {name: cut(x, number, ("batch", "length"), 0) for name, x in of_queries.items()}
        own |= {name: cut(x, number, ("batch", None), 0) for name, x in of_keys.items()}
        return own, lambda part: dataclasses.replace(self, **part)

    def among(self, queries: slice, keys: int) -> Self:
        """What it says of these queries and so many keys, the first."""
        own: dict[str, Any] = {name: x[:, queries] for name, x in self._arrays(OF_QUERIES).items()}
        own |= {name: x[:, :keys] for name, x in self._arrays(OF_KEYS).items()}
        return dataclasses.replace(self, query_positions=self.query_positions[queries], **own)

    def parts(self, number: int) -> "Parts":
        """What it says of the queries, cut into so many parts."""
        of_queries = self._arrays(OF_QUERIES).items()
        own = {name: cut(x, number, ("batch", "length"), 1) for name, x in of_queries}
        own["query_positions"] = cut(self.query_positions, number, ("length",), 0)
        return own, lambda part: dataclasses.replace(self, **part)

    def _arrays(self, names: tuple[str, ...]) -> dict[str, jax.Array]:
        """The fields of these names that it has."""
        return {name: x for name in names if (x := getattr(self, name)) is not None}


# Fields of a mask, [B, Q] and [B, K].
OF_QUERIES, OF_KEYS = ("query_segments", "query_order"), ("key_segments", "prefix", "key_order")


# Arrays with a first dimension of parts, and what makes the mask or bias of a part of its share of them.
Parts = tuple[Any, Callable[[Any], Any]]


def cut(x: jax.Array, number: int, axes: tuple[str | None, ...], at: int) -> jax.Array:
    """Part p of dimension `at` has the elements p, p + number, ...: every device cuts what it has.

    The parts are stacked in a first dimension. axes: the logical ones of x.
    """
    shape = (*x.shape[:at], x.shape[at] // number, number, *x.shape[at + 1 :])
    return jnp.moveaxis(sharding.reshape(x, shape, (*axes[: at + 1], None, *axes[at + 1 :])), at + 1, 0)


def joined(parts: jax.Array, axes: tuple[str | None, ...], at: int) -> jax.Array:
    """The inverse of `cut`."""
    x = jnp.moveaxis(parts, 0, at + 1)
    return sharding.reshape(x, (*x.shape[:at], -1, *x.shape[at + 2 :]), axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bias:
    """T5's relative position bias: a learned number for each head and bucket of distances, shared by layers.

    Half of the buckets (per direction) hold one distance each, the rest grow logarithmically up to
    `max_distance` (https://arxiv.org/abs/1910.10683, section 2.1). table: float32 [buckets, N].
    """

    table: jax.Array
    query_positions: jax.Array
    key_positions: jax.Array
    bidirectional: bool = _static()
    max_distance: int = _static()

    def bucket(self, distance: jax.Array) -> jax.Array:
        """The bucket of each `distance` = key position - query position."""
        buckets, first = self.table.shape[0], jnp.zeros_like(distance)
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

    def written_out(self) -> jax.Array:
        """float32 [N, Q, K]"""
        bucket_QK = self.bucket(self.key_positions[None, :] - self.query_positions[:, None])
        return sharding.take(self.table, bucket_QK, ("length", None, "heads")).transpose(2, 0, 1)

    def parts(self, number: int) -> Parts:
        """As those of a mask."""
        positions = cut(self.query_positions, number, ("length",), 0)
        return positions, lambda part: dataclasses.replace(self, query_positions=part)


# What sees what in a model, by name: the masks of a batch, from its features.
Masks = Mapping[str, Callable[[Mapping[str, jax.Array]], Mask]]

Seen = Mask | jax.Array  # written out: bool [B, Q, K]
Offset = Bias | jax.Array | None  # written out: float32 [N, Q, K]


def mask_of(seen: Seen) -> jax.Array:
    return seen.written_out() if isinstance(seen, Mask) else seen


def bias_of(bias: Offset) -> jax.Array | None:
    return bias.written_out() if isinstance(bias, Bias) else bias
