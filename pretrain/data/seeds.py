"""Noise seeds that depend on (seed, task, data shard, position) and on nothing else.

SeqIO's own map seeds come from a process-wide counter that an exception leaves behind, and they do not
contain the shard, so every data shard draws the same noise masks. Here a task opens a `stream` while its
graph is built, and `with_seeds` gives each example seeds of its own, counted from the stream's start:
after a restored iterator checkpoint the count goes on, so noise survives a restart bit for bit.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import secrets
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass
class _Stream:
    identity: str
    uses: int = 0


_current: contextvars.ContextVar[_Stream | None] = contextvars.ContextVar("noise_stream", default=None)


@contextlib.contextmanager
def stream(seed: int | None, name: str, shard_index: int) -> Iterator[None]:
    """Makes `with_seeds` draw from the stream of this seed, task and shard, in this thread.

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


def with_seeds(dataset: tf.data.Dataset, num_seeds: int) -> tf.data.Dataset:
    """Pairs each example with its own seeds for `tf.random.stateless_*`.

    Two calls within one stream give unrelated seeds.

    Args:
        dataset: any dataset, of elements E.
        num_seeds: how many seeds an example needs.

    Returns:
        A dataset of (E, int64 [num_seeds, 2]).

    Raises:
        RuntimeError: no stream is open.

    >>> with stream(seed=0, name="corpus", shard_index=0):
    ...     dataset = with_seeds(tf.data.Dataset.range(2), num_seeds=3)
    >>> [(int(example), seeds.shape.as_list()) for example, seeds in dataset]
    [(0, [3, 2]), (1, [3, 2])]
    """
    current = _current.get()
    if current is None:
        raise RuntimeError(
            "Noise was asked for outside `seeds.stream(...)`: "
            "read an objective's data from the task that `objective.bind(task)` returns."
        )
    key = _hash(f"{current.identity}/{current.uses}")
    current.uses += 1

    def draw(position: tf.Tensor, example):
        seeds = tf.random.stateless_uniform(
            [num_seeds, 2], seed=[key, position], minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        return example, seeds

    return dataset.enumerate().map(draw, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _hash(text: str) -> int:
    """A signed 64-bit integer; Python's own hash() differs from process to process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
