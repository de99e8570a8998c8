"""In which order examples are read: functions of their position alone, so that nothing has to be replayed.

`shuffled` is a permutation of an epoch, `Mix` says which of several stores is read. Both answer for any
position in the same time, in any order, on any machine, and keep no state.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from pretrain.data.hashing import STEP, hashed
from pretrain.errors import InputError

_ROUNDS = 6  # with 4, some of the permutations of 5 examples come more often than others
_MASK = 2**64 - 1


def shuffled(index: np.ndarray | int, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where in an epoch of `size` examples the one stands that is read as number `index`.

    A pseudo-random permutation of range(size), another one for each seed and epoch, without a table: a
    Feistel network over the least rectangle that holds `size` cells, walked on while it leads outside
    ("generalized Feistel" and "cycle walking" of Black and Rogaway 2002, Ciphers with Arbitrary Finite
    Domains, https://doi.org/10.1007/3-540-45760-7_9), with `hashed` as its round function. It is no
    cipher: it mixes well, and keeps no secret.

    Args:
        index: integers from 0 to size - 1, of any shape.
        size: examples in an epoch, at most 2**62.
        seed: any integer; 64 bits of it count.
        epoch: any integer; 64 bits of it count.

    Returns:
        int64, of the shape of `index`.

    Raises:
        IndexError: an index is outside the epoch.

    >>> shuffled(np.arange(10), size=10, seed=0, epoch=0).tolist()
    [1, 8, 4, 3, 9, 2, 0, 7, 5, 6]
    >>> int(shuffled(3, size=10, seed=0, epoch=0))
    3
    """
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise IndexError(f"positions {index.min()} to {index.max()} are not all in an epoch of {size}")
    height = math.isqrt(max(size - 1, 0)) + 1
    width = -(-size // height)
    keys = _keys(seed, epoch)
    value = _permuted(index.ravel().astype(np.uint64), height, width, keys)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        value[outside] = _permuted(value[outside], height, width, keys)
        outside = outside[value[outside] >= size]
    return value.astype(np.int64).reshape(index.shape)


def _permuted(cell: np.ndarray, height: int, width: int, keys: Sequence[int]) -> np.ndarray:
    """Permutes the cells of a rectangle, uint64: in turn, row and column move by a hash of the other."""
    row, column = np.divmod(cell, np.uint64(width))
    for key in range(0, len(keys), 2):
        row = (row + hashed(column ^ np.uint64(keys[key])) % np.uint64(height)) % np.uint64(height)
        column = (column + hashed(row ^ np.uint64(keys[key + 1])) % np.uint64(width)) % np.uint64(width)
    return row * np.uint64(width) + column


@functools.lru_cache
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    """The 64-bit keys of the rounds, two for each."""
    start = _hash(_hash(seed & _MASK) ^ (epoch & _MASK))
    return tuple(_hash(start + turn * STEP & _MASK) for turn in range(1, 2 * _ROUNDS + 1))


def _hash(value: int) -> int:
    return int(hashed(np.array([value], np.uint64))[0])


@dataclasses.dataclass(frozen=True)
class Mix:
    """Several stores read in turn, each at its rate; which one comes when repeats after `PERIOD` positions.

    In a period each store has a whole number of turns, as near to its rate as that allows, and they are
    spread evenly: among the first n positions, those of a store are its share of n, give or take at most
    (stores + 1) / 2.

    Attributes:
        rates: how often each store is read, relative to the others; 0 is never. They need not sum to 1.

    Raises:
        InputError: a rate is no number of at least 0, all are 0, or one is too small for the period.

    >>> mix = Mix([3.0, 1.0])
    >>> store, index = mix.position(np.arange(8))
    >>> store.tolist(), index.tolist()
    ([0, 0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 2, 3, 4, 1, 5])
    """

    rates: Sequence[float]
    PERIOD = 2**16

    def __post_init__(self) -> None:
        rates = list(self.rates)
        if not rates or not all(map(_is_rate, rates)) or not any(rates):
            raise InputError(
                f"The rates of a mix are {rates}: give each store a number of at least 0, not all of them 0."
            )
        for number, (rate, turns) in enumerate(zip(rates, self.turns, strict=True)):
            if rate and not turns:
                raise InputError(
                    f"Rate {number} of a mix, {rate}, is too small beside the others in {rates}: raise it to "
                    f"1/{self.PERIOD} of their sum, or set it to 0 to leave that store out."
                )

    @functools.cached_property
    def turns(self) -> np.ndarray:
        """How often each store is read in a period, int64 [stores]; they sum to `PERIOD`."""
        exact = np.array(self.rates, np.float64) / math.fsum(self.rates) * self.PERIOD
        turns = np.floor(exact).astype(np.int64)
        # What rounding down left over goes to the largest remainders.
        turns[np.argsort(turns - exact, kind="stable")[: self.PERIOD - turns.sum()]] += 1
        return turns

    @functools.cached_property
    def _period(self) -> tuple[np.ndarray, np.ndarray]:
        """The store of each position of a period, and how often it was read before; int64 [PERIOD] each."""
        store = np.repeat(np.arange(len(self.turns)), self.turns)
        before = np.concatenate([np.arange(turns) for turns in self.turns])
        order = np.argsort((before + 0.5) / self.turns[store], kind="stable")
        return store[order], before[order]

    def position(self, index: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Which store is read at positions `index`, from 0 up, and which of its examples.

        The examples of a store are numbered 0, 1, 2, ... in the order of the positions, without end: which
        epoch number n is in, and where in it, is for `shuffled` to say.

        Returns:
            int64 (store, example), each of the shape of `index`.
        """
        period, within = np.divmod(np.asarray(index, np.int64), self.PERIOD)
        stores, before = self._period
        store = stores[within]
        return store, period * self.turns[store] + before[within]

    def counts(self, number: int) -> np.ndarray:
        """How often each store is read at the first `number` positions, int64 [stores].

        >>> Mix([3.0, 1.0]).counts(6).tolist()
        [5, 1]
        """
        periods, rest = divmod(number, self.PERIOD)
        return periods * self.turns + np.bincount(self.stores[:rest], minlength=len(self.turns))

    @property
    def stores(self) -> np.ndarray:
        """The store of each position of a period, int64 [PERIOD]."""
        return self._period[0]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Mixes of the same stores that follow each other.

    Attributes:
        starts: the position from which each mix is read, in order, the first of them 0.
        mixes: as many.

    >>> store, index = Schedule([0, 4], [Mix([1.0, 0.0]), Mix([1.0, 1.0])]).position(np.arange(8))
    >>> store.tolist(), index.tolist()
    ([0, 0, 0, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 0, 5, 1])
    """

    starts: Sequence[int]
    mixes: Sequence[Mix]

    @functools.cached_property
    def _before(self) -> np.ndarray:
        """How often each store was read before each start, int64 [starts, stores]."""
        lengths = np.diff(self.starts)
        counts = [mix.counts(int(length)) for mix, length in zip(self.mixes, lengths, strict=False)]
        return np.cumsum([np.zeros_like(self.mixes[0].turns), *counts], axis=0)

    def end(self, stores: slice) -> int | None:
        """The position from which on none of these stores is read; None where there is none.

        >>> Schedule([0, 4], [Mix([1.0, 1.0]), Mix([0.0, 1.0])]).end(slice(0, 1))
        4
        """
        read = [bool(mix.turns[stores].any()) for mix in self.mixes]
        last = max((number for number, some in enumerate(read) if some), default=-1)
        return None if last + 1 == len(read) else self.starts[last + 1]

    def position(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As that of a mix."""
        index = np.asarray(index, np.int64)
        stretch = np.searchsorted(self.starts, index, side="right") - 1
        store, example = np.zeros_like(index), np.zeros_like(index)
        for number in np.unique(stretch):
            own = stretch == number
            store[own], example[own] = self.mixes[number].position(index[own] - self.starts[number])
            example[own] += self._before[number, store[own]]
        return store, example


def _is_rate(rate: object) -> bool:
    return isinstance(rate, int | float | np.number) and math.isfinite(rate) and bool(rate >= 0)
