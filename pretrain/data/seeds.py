"""Noise seeds that depend on (seed, task, data shard, position) and on nothing else.

SeqIO's own map seeds come from a process-wide counter that an exception leaves behind, and they do not
contain the shard, so every data shard draws the same noise masks. Here a task opens a `stream` while its
graph is built, and `of_positions` gives each example a seed of its own, counted from the stream's start:
after a restored iterator checkpoint the count goes on, so noise survives a restart bit for bit.

`uniform` draws from many seeds at once, which `tf.random.stateless_uniform` does not.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterator

import tensorflow as tf

from pretrain.data.hashing import STEP, before_last_step

# Part of what a run's data are: with another generator, a run that went on would not be exact.
IDENTITY = {"the generator of noise": "SplitMix64"}


@dataclasses.dataclass
class _Stream:
    identity: str
    uses: int = 0


_current: contextvars.ContextVar[_Stream | None] = contextvars.ContextVar("noise_stream", default=None)


@contextlib.contextmanager
def stream(seed: int | None, name: str, shard_index: int) -> Iterator[None]:
    """Makes `of_positions` draw from the stream of this seed, task and shard, in this thread.

    Args:
        seed: an integer, or None for a fresh random one (what None means in SeqIO).
        name: the task's name.
        shard_index: which data shard the graph reads.
    """
    seed = secrets.randbits(63) if seed is None else int(seed)
    token = _current.set(_Stream(f"{seed}/{shard_index}/{name}"))
    try:
        yield
    finally:
        _current.reset(token)


def of_positions() -> Callable[[tf.Tensor], tf.Tensor]:
    """The seeds of the stream: a function from positions, int64 [n], to int64 [n, 2].

    Two calls within one stream give unrelated seeds.

    Raises:
        RuntimeError: no stream is open.

    >>> with stream(seed=0, name="corpus", shard_index=0):
    ...     seeds = of_positions()
    >>> seeds(tf.range(3, dtype=tf.int64)).shape.as_list()
    [3, 2]
    """
    current = _current.get()
    if current is None:
        raise RuntimeError(
            "Noise was asked for outside `seeds.stream(...)`: "
            "read an objective's data from the task that `objective.bind(task)` returns."
        )
    digest = hashlib.blake2b(f"{current.identity}/{current.uses}".encode(), digest_size=16).digest()
    keys = [int.from_bytes(half, "big") for half in (digest[:8], digest[8:])]
    current.uses += 1

    def draw(positions: tf.Tensor) -> tf.Tensor:
        positions = tf.cast(positions, tf.uint64)
        halves = [_hashed(_hashed(positions) ^ _uint64(key)) for key in keys]
        return tf.bitcast(tf.stack(halves, axis=1), tf.int64)

    return draw


def random_bits(seeds: tf.Tensor, count: int | tf.Tensor, draw: int = 0) -> tf.Tensor:
    """Random integers of many seeds: the stream of SplitMix64 from where each seed says.

    The first numbers of a seed do not depend on how many are drawn, nor on the seeds beside it.

    Args:
        seeds: int64 [n, 2].
        count: how many numbers of each.
        draw: number of the draw; those of different draws are unrelated.

    Returns:
        int32 [n, count], in [0, 2**31).

    >>> random_bits(tf.constant([[1, 2], [3, 4]], tf.int64), count=3).shape.as_list()
    [2, 3]
    """
    first, second = tf.unstack(tf.bitcast(seeds, tf.uint64), axis=1)
    start = _hashed(_hashed(first + _uint64(draw)) ^ second)
    steps = tf.cast(tf.range(count), tf.uint64) * _uint64(STEP)
    # The upper 31 bits do not depend on the last step.
    bits = before_last_step(start[:, tf.newaxis] + steps, _uint64, _shifted)
    return tf.cast(_shifted(bits, 33), tf.int32)


def uniform(seeds: tf.Tensor, count: int | tf.Tensor, draw: int = 0) -> tf.Tensor:
    """As `random_bits`, but float32 in [0, 1).

    >>> numbers = uniform(tf.constant([[1, 2], [3, 4]], tf.int64), count=3)
    >>> bool(tf.reduce_all((numbers >= 0) & (numbers < 1)))
    True
    """
    # As many bits as float32 tells apart just below 1, so that nothing is rounded up to it.
    bits = tf.bitwise.right_shift(random_bits(seeds, count, draw), 7)
    return tf.cast(bits, tf.float32) * 2.0**-24


def _hashed(value: tf.Tensor) -> tf.Tensor:
    """As `hashing.hashed`."""
    value = before_last_step(value, _uint64, _shifted)
    return value ^ _shifted(value, 31)


def _uint64(number: int) -> tf.Tensor:
    return tf.constant(number, tf.uint64)


def _shifted(value: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(value, _uint64(bits))
