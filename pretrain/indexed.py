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

from pretrain import mixing, positions
from pretrain.data import groups, reading, seeds
from pretrain.data import vocabulary as vocabularies
from pretrain.data.hashing import mixed
from pretrain.data.order import Mix, Schedule, shuffled
from pretrain.data.store import Store
from pretrain.data.store_chunks import Chunks, OfAll, OfEach
from pretrain.errors import InputError
from pretrain.objectives.base import Objective, Part
from pretrain.parallel import sharding
from pretrain.run import RunConfig

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
    """The examples of a run's stores by position, as numpy arrays.

    order: which stream is read at each position; stream p * stores + s is store s, cut for part p of those
        that are read here.
    chunks: of each stream.
    """

    stores: Sequence[Store]
    order: Schedule
    chunks: Sequence[Chunks]
    seed: int

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Examples in an epoch of each stream."""
        return [chunks.number for chunks in self.chunks]

    def part(self, positions: np.ndarray) -> np.ndarray:
        """The part that each of `positions` [n] is of, int64 [n]."""
        return self.order.position(positions)[0] // len(self.stores)

    def end(self, part: int) -> int | None:
        """The position from which on the part is never read; None where there is none."""
        return self.order.end(slice(part * len(self.stores), (part + 1) * len(self.stores)))

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples at `positions` [n], any of them from 0 up.

        Returns:
            int32 tokens end to end, int64 [n] lengths, int64 [n, 2] seeds.
        """
        stream, number = self.order.position(positions)
        epoch, within = np.divmod(number, np.array(self.sizes)[stream])
        place = np.zeros_like(within)
        for s, e in {*zip(stream.tolist(), epoch.tolist(), strict=True)}:
            own = (stream == s) & (epoch == e)
            place[own] = shuffled(within[own], self.sizes[s], int(mixed(self.seed, s)[0]), e)
        chunks = [self.chunks[s].read(i) for s, i in zip(stream.tolist(), place.tolist(), strict=True)]
        seeds = mixed(self.seed, stream[:, None], epoch[:, None], place[:, None], np.arange(2))
        lengths = np.array([len(chunk) for chunk in chunks], np.int64)
        return np.concatenate(chunks), lengths, seeds.astype(np.int64)


def readers(run: RunConfig) -> list[Reader]:
    """What the run reads: one of all parts that share batches, or one of each that has its own.

    Raises InputError if its stores, objective or settings do not go together.
    """
    feature, parts = run.corpus().output_features["targets"], run.objective.parts
    for part in parts:
        _check(part, run)
    # Some end documents and some do not: the stores hold EOS where any does, or where none.
    ends = {part.objective.ends_documents and feature.add_eos for part in parts}
    if len(ends) > 1:
        raise InputError(
            "RunConfig.stores are read either with EOS after each document or without, and the parts of the "
            "mixture want both: leave RunConfig.stores out."
        )
    eos = feature.vocabulary.eos_id if ends.pop() else None
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
    chunks = [
        [_cut(store, part.objective, run.lengths_of(number)) for store in stores]
        for number, part in enumerate(parts)
    ]
    if mixing.shares(run.objective):
        order = mixing.of_rows(parts, run.batch_size, rates)
        found = [Reader(stores, order, [each for own in chunks for each in own], run.seed)]
    else:
        order = Schedule([0], [Mix(rates)])
        found = [
            Reader(stores, order, own, mixing.seed(run.objective, number, run.seed))
            for number, own in enumerate(chunks)
        ]
    for each in found:
        for number, size in enumerate(each.sizes):
            if not size:
                raise InputError(
                    f"The store {stores[number % len(stores)].directory} has no chunk of {run.train_split}: "
                    "it is too small."
                )
    return found


def _cut(store: Store, objective: Objective, lengths: Mapping[str, int]) -> Chunks:
    kind = OfAll if objective.join_documents else OfEach
    return kind(store, objective.chunk_length(lengths), objective.shortest_chunk)


def _check(part: Part, run: RunConfig) -> None:
    if part.task is not None:
        raise InputError(
            f"Part {part.called!r} has a task of its own, which RunConfig.stores do not hold: leave either "
            "out."
        )
    if not part.objective.makes_chunks:
        raise InputError(
            f"{type(part.objective).__name__} makes its examples in a way of its own, which stores do not "
            "know: leave RunConfig.stores out."
        )
    if run.pack:
        raise InputError(
            "RunConfig.stores are read a chunk a row, so that each is found by its number: set pack=False; "
            "with join_documents=True chunks fill their rows."
        )


class IndexedBatches(Iterator[Batch]):
    """As `pipeline.Batches`, of stores: to go to a position takes no time, and any process may.

    position: of the next batch, from 0; those in `skips` count, but nobody sees them.
    """

    elastic = True

    def __init__(self, run: RunConfig, skips: Sequence[range] = ()):
        self._run, self._readers, self._skips = run, readers(run), skips
        self._turns = mixing.of_batches(run.objective.parts) if run.objective.mixes == "batches" else None
        self._rows_held = np.array(sharding.local_rows(run.batch_size), np.int64)
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
        return mixing.present(batch)

    def seek(self, position: int) -> None:
        """The next batch is the one at `position`."""
        self.position, self._stream = position, None

    def identity(self) -> dict[str, str]:
        """What is read, by what says it; the directories of the stores are not part of it."""
        vocabulary = vocabularies.fingerprint(self._run.vocabulary())
        first = self._readers[0]
        digests = [store.manifest.splits[store.split].digest for store in first.stores]
        return {
            "the vocabulary": vocabulary,
            **seeds.IDENTITY,
            "the stores": " ".join(digests),
            **mixing.identity(
                self._run.objective, self._run.lengths, [corpus.name for corpus in self._run.corpora()]
            ),
            "their rates": " ".join(str(turns) for mix in first.order.mixes for turns in mix.turns),
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
        objective, size = self._run.objective, len(self._rows_held)
        rows = [self._rows(part, position) for part in range(len(objective.parts))]
        if mixing.shares(objective):
            mix = rows[0]
            if len(rows) > 1:
                mix = tf.data.Dataset.choose_from_datasets(rows, self._parts(position).unbatch())
            batches = mix.batch(size, drop_remainder=True)
        else:
            own = [each.batch(size, drop_remainder=True) for each in rows]
            batches = mixing.together(own)
            if self._turns is not None:
                wanted = mixing.features(objective, self._run.lengths, pack=False)
                batches = mixing.in_turns(own, self._parts(position), wanted)
        return batches.prefetch(4).with_options(reading.options())

    def _steps(self, position: int) -> Iterator[int]:
        """The positions of batches, from `position` on."""
        while True:
            position = self._unskipped(position)
            yield position
            position += 1

    def _parts(self, position: int) -> tf.data.Dataset:
        """The part of each row that this process holds, int64 [rows] a step; or of each step, int64 []."""

        def parts() -> Iterator[np.ndarray]:
            for step in self._steps(position):
                if self._turns is None:
                    yield self._readers[0].part(step * self._run.batch_size + self._rows_held)
                else:
                    yield self._turns.position(np.array(step))[0]

        shape = [] if self._turns is not None else [len(self._rows_held)]
        return tf.data.Dataset.from_generator(parts, output_signature=tf.TensorSpec(shape, tf.int64))

    def _asked(self, part: int, position: int) -> Iterator[np.ndarray]:
        """What is read of a part, step by step: positions in its reader, int64 [rows].

        It ends where the part does: else a group that is being filled would wait for ever.
        """
        size, held, turns = self._run.batch_size, self._rows_held, self._turns
        if mixing.shares(self._run.objective):
            (found,) = self._readers
            end = found.end(part)
            for step in self._steps(position):
                rows = step * size + held
                if end is not None and rows[0] >= end:
                    return
                yield rows[found.part(rows) == part]
        elif turns is None:
            yield from (step * size + held for step in self._steps(position))
        else:
            end = turns.end(slice(part, part + 1))
            for step in self._steps(position):
                if end is not None and step >= end:
                    return
                turn, number = turns.position(np.array(step))
                if turn == part:
                    yield number * size + held

    def _rows(self, part: int, position: int) -> tf.data.Dataset:
        """The rows of one part, [length] features."""
        run, row_lengths = self._run, dict(self._run.lengths_of(part))
        found = self._readers[0 if mixing.shares(run.objective) else part]

        def examples() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for own in self._asked(part, position):
                if not own.size:
                    continue
                try:
                    read = found.read(own)
                except InputError as error:
                    self._refused = error
                    raise
                yield read

        signature = (
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, 2], tf.int64),
        )
        batches = tf.data.Dataset.from_generator(examples, output_signature=signature)
        objective, features = run.objective.parts[part].objective, run.corpus().output_features

        def make(tokens: tf.Tensor, lengths: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.RaggedTensor]:
            chunks = tf.RaggedTensor.from_row_lengths(tokens, lengths, validate=False)
            return objective.ended_examples(chunks, seeds, row_lengths, features)

        converter = objective.converter(pack=False)
        rows = converter(groups.each(batches, make), task_feature_lengths=row_lengths)
        if not mixing.shares(run.objective):
            return rows
        return mixing.marked(rows, run.objective, part, run.lengths, pack=False)
