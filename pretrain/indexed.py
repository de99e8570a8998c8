"""Batches out of indexed stores: batch N is a function of (seed, N), so it costs nothing to begin at any N.

Position g of the run is example k of a store (`order.Mix`); k is in epoch k // n and is, after shuffling, one
of the store's n chunks; its noise is seeded by (seed, store, epoch, chunk). Which process reads a row is no
part of this, so the same global batches come out for any number of processes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from pretrain import positions
from pretrain.data import groups, reading, seeds
from pretrain.data import vocabulary as vocabularies
from pretrain.data.hashing import mixed
from pretrain.data.order import Mix, shuffled
from pretrain.data.store import Store
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.run import RunConfig

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
    """The examples of a run's stores by position, as numpy arrays."""

    stores: Sequence[Store]
    mix: Mix
    chunk_length: int
    shortest_chunk: int
    seed: int

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Examples in an epoch of each store."""
        return [self._chunks(store) for store in self.stores]

    def _chunks(self, store: Store) -> int:
        whole, rest = divmod(store.tokens, self.chunk_length)
        return whole + (rest >= self.shortest_chunk)

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples at `positions` [n], any of them from 0 up.

        Returns:
            int32 tokens end to end, int64 [n] lengths, int64 [n, 2] seeds.
        """
        store, number = self.mix.position(positions)
        epoch, within = np.divmod(number, np.array(self.sizes)[store])
        place = np.zeros_like(within)
        for s, e in {*zip(store.tolist(), epoch.tolist(), strict=True)}:
            own = (store == s) & (epoch == e)
            place[own] = shuffled(within[own], self.sizes[s], int(mixed(self.seed, s)[0]), e)
        chunks = [
            self.stores[s].chunk(i, self.chunk_length)
            for s, i in zip(store.tolist(), place.tolist(), strict=True)
        ]
        seeds = mixed(self.seed, store[:, None], epoch[:, None], place[:, None], np.arange(2))
        lengths = np.array([len(chunk) for chunk in chunks], np.int64)
        return np.concatenate(chunks), lengths, seeds.astype(np.int64)


def reader(run: RunConfig) -> Reader:
    """What the run reads. Raises InputError if its stores, objective or settings do not go together."""
    objective, feature = run.objective, run.corpus().output_features["targets"]
    if not objective.makes_chunks:
        raise InputError(
            f"{type(objective).__name__} makes its examples in a way of its own, which stores do not know: "
            "leave RunConfig.stores out."
        )
    if not objective.join_documents or run.pack:
        raise InputError(
            "RunConfig.stores hold documents end to end, whose chunks fill their rows: set "
            "join_documents=True and pack=False."
        )
    eos = feature.vocabulary.eos_id if objective.ends_documents and feature.add_eos else None
    stores = [Store.open(directory, run.train_split, eos) for directory in run.stores or ()]
    for store in stores:
        if store.manifest.vocabulary != vocabularies.fingerprint(feature.vocabulary):
            raise InputError(
                f"The store {store.directory} holds tokens of another vocabulary than that of task "
                f"{run.corpus().name!r}: cache the corpus again with this one, or use the one of the store."
            )
    rates = run.store_rates or [store.tokens for store in stores]
    if len(rates) != len(stores):
        raise InputError(
            f"RunConfig.store_rates has {len(rates)} rates for {len(stores)} stores: give one for each."
        )
    found = Reader(
        stores=stores,
        mix=Mix(rates),
        chunk_length=objective.chunk_length(run.lengths),
        shortest_chunk=objective.shortest_chunk,
        seed=run.seed,
    )
    for store, size in zip(stores, found.sizes, strict=True):
        if not size:
            raise InputError(
                f"The store {store.directory} has no chunk of {run.train_split}: it is too small."
            )
    return found


class IndexedBatches(Iterator[Batch]):
    """As `pipeline.Batches`, of stores: to go to a position takes no time, and any process may.

    position: of the next batch, from 0; those in `skips` count, but nobody sees them.
    """

    elastic = True

    def __init__(self, run: RunConfig, skips: Sequence[range] = ()):
        self._run, self._reader, self._skips = run, reader(run), skips
        self._rows = np.array(sharding.local_rows(run.batch_size), np.int64)
        self.position = 0
        self._stream: Iterator[Batch] | None = None
        self._refused: InputError | None = None

    def __next__(self) -> Batch:
        self.position = self._unskipped(self.position)
        if self._stream is None:
            self._stream = self._dataset(self.position).as_numpy_iterator()
        try:
            batch = next(self._stream)
        except tf.errors.OpError as error:
            if self._refused:  # which TensorFlow has made one of its own errors
                raise self._refused from error
            raise
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """The next batch is the one at `position`."""
        self.position, self._stream = position, None

    def identity(self) -> dict[str, str]:
        """What is read, by what says it; the directories of the stores are not part of it."""
        vocabulary = vocabularies.fingerprint(self._run.vocabulary())
        digests = [store.manifest.splits[store.split].digest for store in self._reader.stores]
        return {
            "the vocabulary": vocabulary,
            **seeds.IDENTITY,
            "the stores": " ".join(digests),
            "their rates": " ".join(map(str, self._reader.mix.turns)),
        }

    def snapshot(self) -> Callable[[Path], None]:
        """What writes the position of now, and what it is one in."""
        return functools.partial(positions.write, position=self.position, identity=self.identity())

    def restore(self, path: Path) -> None:
        """Goes to the position that was saved. Raises InputError if that was in other data."""
        self.seek(positions.read(path, self.identity()))

    def _unskipped(self, position: int) -> int:
        while any(position in skip for skip in self._skips):
            position += 1
        return position

    def _dataset(self, position: int) -> tf.data.Dataset:
        """This process's batches from `position` on: [rows, length] features."""
        run, found = self._run, self._reader

        def examples() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            at = position
            while True:
                at = self._unskipped(at)
                try:
                    read = found.read(at * run.batch_size + self._rows)
                except InputError as error:
                    self._refused = error
                    raise
                yield read
                at += 1

        signature = (
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([len(self._rows)], tf.int64),
            tf.TensorSpec([len(self._rows), 2], tf.int64),
        )
        batches = tf.data.Dataset.from_generator(examples, output_signature=signature)
        objective, features = run.objective, run.corpus().output_features

        def make(tokens: tf.Tensor, lengths: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.RaggedTensor]:
            chunks = tf.RaggedTensor.from_row_lengths(tokens, lengths, validate=False)
            return objective.ended_examples(chunks, seeds, run.lengths, features)

        converter = objective.converter(pack=False)
        rows = converter(groups.each(batches, make), task_feature_lengths=dict(run.lengths))
        return rows.batch(len(self._rows), drop_remainder=True).prefetch(4).with_options(reading.options())
