"""A TFDS dataset as a SeqIO source: prepared on first use, sharded by file, read by TensorFlow alone."""

import contextlib
import hashlib
import logging
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from pretrain.errors import InputError

# A host reads whole files, so a corpus needs as many files as there are hosts. TFDS's own rule (64 MiB a
# file) gives most corpora just one; this gives 16 files to 2 MiB of text, and 256 from 32 MiB on.
_SMALL_SHARD_BYTES = 128 * 1024
_MAX_SMALL_SHARDS = 256


class PreparedTfdsDataSource(seqio.DataSource):
    """The splits of one TFDS dataset, opened (and so prepared, where the builder can) on first use.

    Unlike `seqio.TfdsDataSource` it takes a builder instead of a registered name, so that a dataset may
    depend on settings; it never asks the network; and it leaves caching to `seqio.Task`. The datasets are
    plain `tf.data` graphs, whose iterators `tf.train.Checkpoint` can save.

    Args:
      open_builder: returns a builder whose data are there, or raises `InputError`; called once.
      splits: SeqIO split name -> TFDS split or slice, e.g. `{"validation": "train[99%:]"}`.
    """

    def __init__(self, open_builder: Callable[[], tfds.core.DatasetBuilder], splits: Mapping[str, str]):
        super().__init__(splits=splits)
        self._open_builder = open_builder
        self._tfds_splits = dict(splits)
        self._builder: tfds.core.DatasetBuilder | None = None

    @property
    def builder(self) -> tfds.core.DatasetBuilder:
        if self._builder is None:
            self._builder = self._open_builder()
        return self._builder

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The files of the split; none where TFDS does not know them (under `tfds.testing.mock_data`)."""
        info = self._split_info(split)
        return [instruction.filename for instruction in info.file_instructions] if info else []

    def num_input_examples(self, split: str) -> int | None:
        """The number of documents; None where TFDS does not know it (under `tfds.testing.mock_data`)."""
        info = self._split_info(split)
        return info.num_examples if info else None

    def identity(self, split: str) -> str:
        """What the documents are: their digest if a `LocalBuilder` made them, else the dataset's name."""
        tfds_split = self._tfds_splits[split]
        digest = (self.builder.info.metadata or {}).get(tfds_split)
        return digest or f"{self.builder.info.full_name} {tfds_split}"

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """One epoch of documents; `shuffle` orders the files by `seed`, `shard_info` picks some of them."""
        del sequence_length, use_cached, num_epochs  # part of SeqIO's interface, meaningless for raw text
        context = shard_info and tf.distribute.InputContext(
            num_input_pipelines=shard_info.num_shards, input_pipeline_id=shard_info.index
        )
        read_config = tfds.ReadConfig(
            shuffle_seed=seed, input_context=context, skip_prefetch=True, try_autocache=False
        )
        return self.builder.as_dataset(
            split=self._tfds_splits[split], shuffle_files=shuffle, read_config=read_config
        )

    def _split_info(self, split: str) -> tfds.core.SplitInfo | None:
        splits = self.builder.info.splits
        return splits[self._tfds_splits[split]] if splits else None


KeyedExample = tuple[str, dict[str, str]]


class LocalBuilder(tfds.core.GeneratorBasedBuilder):
    """Base of the builders that make a dataset out of files that are already here.

    A subclass says in `features()` what an example holds, and its `splits()` and their `documents(split)`,
    each a unique key and an example; TFDS asks for the rest. Nothing is downloaded, so nothing of TFDS's that
    speaks of downloads, or that looks for metadata in Google's bucket, is kept.
    """

    # Checksums of downloads: to look for them TFDS 4.9.10 imports `importlib_resources`, which it does not
    # require.
    url_infos = None

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        raise NotImplementedError

    def splits(self) -> Sequence[str]:
        raise NotImplementedError

    def documents(self, split: str) -> Iterator[KeyedExample]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.features())
        return _LocalInfo(builder=self, features=features, metadata=tfds.core.MetadataDict())

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[KeyedExample]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self.splits()}

    def _generate_examples(self, split: str) -> Iterator[KeyedExample]:
        """The documents; a digest of all of them is kept with the dataset's metadata."""
        digest = hashlib.blake2b(digest_size=16)
        for key, example in self.documents(split):
            digest.update(repr((key, sorted(example.items()))).encode("utf-8", "surrogatepass"))
            yield key, example
        self.info.metadata[split] = digest.hexdigest()

    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class _LocalInfo(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        pass


class _ShardConfig(shard_utils.ShardConfig):
    def get_number_shards(
        self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
    ) -> int:
        usual = super().get_number_shards(total_size, num_examples, uses_precise_sharding)
        small = min(_MAX_SMALL_SHARDS, total_size // _SMALL_SHARD_BYTES, num_examples)
        return max(usual, 2 ** int(math.log2(max(small, 1))))


class _DownloadConfig(tfds.download.DownloadConfig):
    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig()


def data_dir() -> str:
    """Where datasets live: `seqio.set_tfds_data_dir_override`, $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    override = seqio.utils.LazyTfdsLoader().data_dir
    return os.path.expanduser(override or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def prepare(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Returns the builder, its dataset generated first where nobody has.

    TFDS writes into a directory of its own and renames it when done, so a dataset is there whole or not at
    all, also when it is interrupted or when several processes prepare it at once: the first to finish wins.

    Raises:
      InputError: the data directory cannot be written, holds a damaged dataset, or the builder raised it.
    """
    with _silent_absl():
        builder = make_builder()
        if not builder.is_prepared():
            _generate(builder, make_builder)
            builder = make_builder()
        if not builder.is_prepared():
            raise InputError(
                f"{builder.data_dir} is not a whole TFDS dataset: remove it to have it prepared again."
            )
    return builder


def installed(name: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a dataset that somebody has prepared already, for those that take a cluster.

    Args:
      name: `dataset/config:version`.

    Raises:
      InputError: TFDS has no such dataset, or it is not prepared in `data_dir()`.
    """
    root = data_dir()
    try:
        with _silent_absl():
            builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"TFDS {tfds.__version__} has no dataset {name!r}: write tfds_name as 'dataset/config:version', "
            "with names from https://www.tensorflow.org/datasets/catalog."
        ) from error
    try:
        builder.as_dataset(split={})  # builds nothing; TFDS asserts that the data are there
    except AssertionError as error:
        raise InputError(
            f"{name} is not prepared in {root}: set TFDS_DATA_DIR to where it is, or prepare it with "
            f"`tfds build {name} --data_dir={root}` (Apache Beam; see the TFDS guide for large datasets)."
        ) from error
    return builder


def unit_hash(data: bytes) -> float:
    """A number in [0, 1) that depends on `data` alone, not on the process or the machine.

    >>> round(unit_hash(b"abc"), 6)
    0.07729
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def _generate(
    builder: tfds.core.DatasetBuilder, make_builder: Callable[[], tfds.core.DatasetBuilder]
) -> None:
    config = _DownloadConfig(try_download_gcs=False)
    try:
        with tempfile.TemporaryDirectory() as downloads, _own_randomness():
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except (OSError, tf.errors.OpError) as error:
        # Where another process was first, the rename found its directory in the way.
        if make_builder().is_prepared():
            return
        raise InputError(
            f"{builder.name} cannot be prepared in {builder.data_dir} ({error}): "
            "set TFDS_DATA_DIR to a directory that you can write, with room for the text."
        ) from error
    finally:
        # After a failure the directories above the data are empty, and would pile up with each attempt.
        for parent in builder.data_path.parents:
            if os.fspath(parent) == os.fspath(builder.data_dir_root):
                break
            with contextlib.suppress(OSError):
                os.rmdir(parent)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """TFDS names its temporary directory with `random`: processes with equal seeds would share one."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _silent_absl() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
