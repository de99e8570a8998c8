"""Task x objective -> the batches of this process, and an iterator whose position can be saved.

Every process reads its own share of the data and makes its own rows of the global batch; those that hold
the same rows read the same share.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import seqio
import tensorflow as tf

from pretrain import mixing, positions
from pretrain.data import reading, seeds
from pretrain.data import vocabulary as vocabularies
from pretrain.errors import InputError
from pretrain.indexed import IndexedBatches
from pretrain.parallel import sharding
from pretrain.run import RunConfig

Batch = Mapping[str, np.ndarray]

_STATE = {"tensor_names": ["iterator"], "shape_and_slices": [""]}  # of an iterator in TensorFlow's files


def _batches(
    run: RunConfig, split: str, *, training: bool, shard: seqio.ShardInfo, size: int, part: int | None
) -> tf.data.Dataset:
    """Batches of `size` rows of this shard of the split: shuffled and endless, or once and in order."""
    objective, parts = run.objective, run.objective.parts
    streams = [_rows(run, n, split, training=training, shard=shard) for n in range(len(parts))]
    if mixing.shares(objective):
        # An evaluation reads all parts in turn, as long as they last.
        turns = mixing.of_rows(parts, size) if training else mixing.evenly(len(streams))
        mix = streams[0]
        if len(streams) > 1:
            mix = tf.data.Dataset.choose_from_datasets(
                streams, mixing.choices(turns), stop_on_empty_dataset=training
            )
        return mix.batch(size, drop_remainder=training)
    # Parts with batches of their own.
    own = [rows.batch(size, drop_remainder=training) for rows in streams]
    if not training:
        assert part is not None
        return mixing.named(own[part], part)
    if objective.mixes == "losses":
        return mixing.together(own)
    wanted = mixing.features(objective, run.lengths, run.pack)
    return mixing.in_turns(own, mixing.choices(mixing.of_batches(parts)), wanted)


def _rows(
    run: RunConfig, number: int, split: str, *, training: bool, shard: seqio.ShardInfo
) -> tf.data.Dataset:
    """Those of one part."""
    objective = run.objective.parts[number].objective
    bound = objective.bind(run.corpora()[number], run.shuffle_buffer)
    seed, lengths = mixing.seed(run.objective, number, run.seed), dict(run.lengths_of(number))
    read = {
        "sequence_length": lengths,
        "split": split,
        "use_cached": run.use_cached,
        "shuffle": training,
        # Held-out noise is the same for every run, so that runs of different seeds can be compared.
        "seed": seed if training else mixing.seed(run.objective, number, 0),
        "shard_info": shard,
        "num_epochs": None if training else 1,
        # An in-memory cache would be written into every checkpoint of the iterator.
        "try_in_mem_cache": False,
    }
    if isinstance(bound, seqio.Mixture) and not training:
        # SeqIO's mixture ends when its first task does; an evaluation reads every task to its end.
        dataset = _one_after_another(
            [task.get_dataset(**read) for task in bound.tasks], bound.output_features
        )
    else:
        dataset = bound.get_dataset(**read)
    made = objective.converter(run.pack)(dataset, task_feature_lengths=lengths)
    if not mixing.shares(run.objective):
        return made
    return mixing.marked(made, run.objective, number, run.lengths, run.pack)


def _one_after_another(datasets: Sequence[tf.data.Dataset], features: Iterable[str]) -> tf.data.Dataset:
    """All of each, with the features that all have."""
    kept = [dataset.map(lambda example: {name: example[name] for name in features}) for dataset in datasets]
    return functools.reduce(lambda first, second: first.concatenate(second), kept)


def batches(
    run: RunConfig, split: str | None = None, *, training: bool = True, skips: Sequence[range] = (),
    part: int | None = None,
) -> "Batches | IndexedBatches":  # fmt: skip
    """The batches of this process: [its share of batch_size, length] int32 and float32 features.

    skips: positions of batches to leave out.
    part: of a mixture whose parts have batches of their own, the one that an evaluation is to read, see
        `mixing.held_out`.
    """
    if training and run.stores:
        return IndexedBatches(run, skips)
    index, count = sharding.local_share(run.batch_size)
    shard = seqio.ShardInfo(index=index, num_shards=count)
    split = split or (run.train_split if training else run.eval_split)
    size = run.batch_size // count
    dataset = _batches(run, split, training=training, shard=shard, size=size, part=part)
    dataset = dataset.prefetch(4).with_options(reading.options())
    tasks = [task.name for task in (run.tasks() if part is None else [run.corpora()[part]])]
    name = f"split {split!r} of task {' and '.join(map(repr, tasks))}"
    what = identity(run, split) | {"the share of a process": f"{index} of {count}"}
    return Batches(dataset, size, name, what, skips)


def identity(run: RunConfig, split: str) -> dict[str, str]:
    """What is read, by what says it: each task's documents, and the vocabulary that made them tokens.

    A source may have a method `identity(split) -> str`, as those in `tasks` do; of others, the names of the
    files count, without their directories: a corpus may move.
    """
    parts = {"the vocabulary": vocabularies.fingerprint(run.vocabulary()), **seeds.IDENTITY}
    for task in run.tasks():
        if split in task.splits:
            parts[f"the {split} data of task {task.name!r}"] = identity_of_source(task.source, split)
    return parts | mixing.identity(run.objective, run.lengths, [corpus.name for corpus in run.corpora()])


def identity_of_source(source: seqio.DataSource, split: str) -> str:
    if hasattr(source, "identity"):
        return source.identity(split)
    names = [os.path.basename(path) for path in source.list_shards(split)]
    return hashlib.blake2b(repr(names).encode(), digest_size=8).hexdigest()


class Batches(Iterator[Batch]):
    """An iterator over numpy batches whose position is saved with the checkpoint and restored from it.

    position: of the next batch, from 0; those in `skips` count, but nobody sees them.
    elastic: whether another number of processes may go on from a saved position.
    """

    elastic = False

    def __init__(
        self,
        dataset: tf.data.Dataset,
        rows: int,
        name: str,
        identity: Mapping[str, str],
        skips: Sequence[range] = (),
    ):
        self.position = 0
        self._skips = skips
        self._identity = dict(identity)
        self._iterator = iter(dataset)
        self._rows = rows
        self._name = name
        self._started = False

    def __next__(self) -> Batch:
        while any(self.position in skip for skip in self._skips):
            self._draw()
        batch = {name: value.numpy() for name, value in self._draw().items()}
        return {name: _padded(value, self._rows) for name, value in mixing.present(batch).items()}

    def _draw(self) -> dict[str, tf.Tensor]:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._started:
                raise
            raise InputError(
                f"There is not one batch of {self._rows} in {self._name}: it is empty, or too small for "
                f"RunConfig.batch_size and lengths."
            ) from None
        self._started = True
        self.position += 1
        return batch

    def snapshot(self) -> Callable[[Path], None]:
        """What writes the position of now, and in what: a few files that begin with the path it is given.

        It may be called later and by another thread; only this call keeps the iterator from going on.
        """
        try:
            state = tf.raw_ops.SerializeIterator(
                resource_handle=self._iterator._iterator_resource,
                external_state_policy=tf.data.experimental.ExternalStatePolicy.FAIL.value,
            )
        except tf.errors.FailedPreconditionError as error:
            raise InputError(
                f"The position in {self._name} cannot be saved, so the run could not be resumed: its "
                f"pipeline uses from_generator, py_function or another stateful step ({error.message})."
            ) from error
        position = self.position

        def write(path: Path) -> None:
            try:
                tf.raw_ops.SaveV2(prefix=str(path), tensors=[state], **_STATE)
            except tf.errors.OpError as error:
                raise OSError(error.message) from error
            positions.write(path, position, self._identity)

        return write

    def restore(self, path: Path) -> None:
        """Continues where the iterator that wrote `path` stood.

        Raises InputError if that was in other data: TensorFlow would go on with the files of before.
        """
        position = positions.read(path, self._identity)
        try:
            tf.raw_ops.DeserializeIterator(
                resource_handle=self._iterator._iterator_resource, serialized=read_iterator(path)
            )
        except tf.errors.NotFoundError as error:
            # TensorFlow saves the dataset with the position, the paths of its files included.
            missing = re.search(r"restore dataset iterator from checkpoint: ([^;]*);", error.message)
            if not missing:
                raise
            raise InputError(
                f"{path} is a position in {missing[1]}, which is not there: bring it back (under the "
                "TFDS_DATA_DIR of before, if it lies in one), or start in another --model-dir."
            ) from error
        self._started = True
        self.position = position


def read_iterator(path: Path) -> tf.Tensor:
    """What `Batches.snapshot` wrote of the iterator. Raises one of tf.errors if it is not as written."""
    return tf.raw_ops.RestoreV2(prefix=str(path), dtypes=[tf.variant], **_STATE)[0]


def _padded(value: np.ndarray, rows: int) -> np.ndarray:
    """The last batch of a finite split, filled up with rows of padding, which carry no loss."""
    missing = rows - value.shape[0]
    return np.pad(value, ((0, missing), (0, 0))) if missing else value


def to_devices(batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> dict[str, jax.Array]:
    """The global batch, every device holding its part of what its process read: whole rows."""
    layout = sharding.named(mesh, rules, ("batch", "length"))
    shares = len(set(sharding.rows_of_processes(mesh, rules, mesh.size).values()))
    return {
        name: jax.make_array_from_process_local_data(layout, rows, (len(rows) * shares, rows.shape[1]))
        for name, rows in batch.items()
    }


def abstract_batch(run: RunConfig, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch on the devices of `mesh`, without reading one."""
    layout = sharding.named(mesh, run.rules, ("batch", "length"))
    features = mixing.features(run.objective, run.lengths, run.pack)
    return {
        name: jax.ShapeDtypeStruct((run.batch_size, length), dtype.as_numpy_dtype, sharding=layout)
        for name, (length, dtype) in features.items()
    }
