"""Preparing once, whole or not at all; reading everything once on any number of hosts; resuming exactly."""

import os
import random
import socket

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from pretrain.errors import InputError
from tasks import sources
from tasks.corpus import corpus_task

_COUNT = 300
_DOCUMENTS = [f"{number:04d} " + "word " * 800 for number in range(_COUNT)]  # 1.2 MB: 8 files


class Numbers(sources.LocalBuilder):
    """Numbered documents; `interruption` runs when half of them are written."""

    VERSION = tfds.core.Version("1.0.0")
    interruption = staticmethod(lambda: None)

    def features(self):
        return {"text": tfds.features.Text()}

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, text in enumerate(_DOCUMENTS):
            if number == _COUNT // 2:
                type(self).interruption()
            yield number, {"text": text}


def _open(root):
    return lambda: sources.prepare(lambda: Numbers(data_dir=str(root)))


def _texts(dataset):
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


def _files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".tfrecord" in path.name
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return sources.PreparedTfdsDataSource(_open(tmp_path_factory.mktemp("tfds")), {"train": "train"})


def test_counts_and_shards(source):
    assert source.num_input_examples("train") == _COUNT
    assert len(source.list_shards("train")) == 8
    assert all(os.path.exists(path) for path in source.list_shards("train"))
    assert tuple(source.splits) == ("train",)


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_hosts_together_read_everything_once(source, hosts, shuffle):
    read = [
        text
        for index in range(hosts)
        for text in _texts(
            source.get_dataset("train", shuffle=shuffle, seed=3, shard_info=seqio.ShardInfo(index, hosts))
        )
    ]
    assert sorted(read) == _DOCUMENTS


@pytest.mark.parametrize("hosts", [4, 11])  # more hosts than files: SeqIO deals out the documents one by one
def test_the_hosts_of_a_task_read_everything_once(source, hosts):
    task = corpus_task("numbers", source)
    read = [
        example["targets_pretokenized"].decode()
        for index in range(hosts)
        for example in task.get_dataset(seed=3, shard_info=seqio.ShardInfo(index, hosts)).as_numpy_iterator()
    ]
    assert sorted(read) == _DOCUMENTS


def test_order_is_a_function_of_the_seed(source, tmp_path):
    first, again, other = (_texts(source.get_dataset("train", seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
    elsewhere = sources.PreparedTfdsDataSource(_open(tmp_path), {"train": "train"})
    assert _texts(elsewhere.get_dataset("train", seed=1)) == first


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("read", [0, 7, 160])  # nothing, within the first epoch of 150, within the second
def test_an_iterator_resumes_exactly(source, tmp_path, read, in_memory):
    def start():
        return iter(
            corpus_task("numbers", source).get_dataset(
                seed=5,
                shuffle_buffer_size=16,
                shard_info=seqio.ShardInfo(1, 2),
                num_epochs=None,
                try_in_mem_cache=in_memory,
            )
        )

    iterator = start()
    for _ in range(read):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "checkpoint"))
    expected = [next(iterator)["targets_pretokenized"].numpy() for _ in range(200)]
    resumed = start()
    tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
    assert [next(resumed)["targets_pretokenized"].numpy() for _ in range(200)] == expected


def test_preparing_is_quiet_offline_and_leaves_randomness_alone(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(gcs_utils, "_is_gcs_disabled", False)  # as in releases of TFDS that still ask Google
    monkeypatch.setattr(gcs_utils, "exists", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    random.seed(1)
    _open(tmp_path)()
    after = random.random()
    random.seed(1)
    assert after == random.random()
    out, err = capfd.readouterr()
    assert out == ""
    assert "WARNING" not in err


def test_a_second_use_writes_nothing(tmp_path, monkeypatch):
    _open(tmp_path)()
    monkeypatch.setattr(Numbers, "download_and_prepare", lambda self, **kwargs: pytest.fail("prepared again"))
    assert _open(tmp_path)().info.splits["train"].num_examples == _COUNT


@pytest.mark.parametrize("kind", [KeyboardInterrupt, InputError, RuntimeError])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch, kind):
    def interrupt():
        raise kind("on purpose")

    monkeypatch.setattr(Numbers, "interruption", staticmethod(interrupt))
    with pytest.raises(kind) as caught:
        _open(tmp_path)()
    assert str(caught.value) == "on purpose"
    assert list(tmp_path.rglob("*")) == []
    assert tmp_path.exists()
    monkeypatch.undo()
    assert _open(tmp_path)().is_prepared()


def test_what_a_killed_process_left_is_not_taken_for_data(tmp_path):
    rest = tmp_path / "numbers" / "incomplete.ABCDEF_1.0.0"
    rest.mkdir(parents=True)
    (rest / "numbers-train.tfrecord-00000-of-00001").write_bytes(b"half")
    assert _open(tmp_path)().info.splits["train"].num_examples == _COUNT


def test_of_two_that_prepare_at_once_the_first_wins(tmp_path, monkeypatch):
    won: list[dict[str, bytes]] = []

    def another_process():
        monkeypatch.setattr(Numbers, "interruption", staticmethod(lambda: None))
        random.seed(0)  # a job's hosts often share a seed, and TFDS names its directory with it
        _open(tmp_path)()
        won.append(_files(tmp_path / "numbers" / "1.0.0"))

    monkeypatch.setattr(Numbers, "interruption", staticmethod(another_process))
    random.seed(0)
    builder = _open(tmp_path)()
    assert builder.info.splits["train"].num_examples == _COUNT
    assert len(_texts(builder.as_dataset(split="train"))) == _COUNT
    assert _files(tmp_path) == {f"numbers/1.0.0/{name}": data for name, data in won[0].items()}


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"numbers cannot be prepared in .*/file/.*set TFDS_DATA_DIR"):
        _open(tmp_path / "file")()


def test_a_damaged_dataset_is_named(tmp_path):
    _open(tmp_path)()
    (tmp_path / "numbers" / "1.0.0" / "dataset_info.json").unlink()
    with pytest.raises(InputError, match=r"numbers/1\.0\.0 is not a whole TFDS dataset: remove it"):
        _open(tmp_path)()


def test_the_data_directory_is_seqios_then_the_environments_then_tfdss(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert sources.data_dir() == os.path.expanduser("~/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert sources.data_dir() == str(tmp_path)
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", "/elsewhere")
    assert sources.data_dir() == "/elsewhere"


@pytest.mark.parametrize(
    ("size", "examples", "shards"),
    [
        (1, 1, 1),
        (100_000, 50, 1),
        (2 << 20, 1000, 16),
        (2 << 20, 5, 4),
        (1 << 30, 10**6, 256),
        (1 << 36, 10**9, 1024),
    ],
)
def test_number_of_files(size, examples, shards):
    assert sources._ShardConfig().get_number_shards(size, examples) == shards


def test_unit_hash_is_uniform():
    values = [sources.unit_hash(str(number).encode()) for number in range(10_000)]
    assert all(0 <= value < 1 for value in values)
    for edge in (0.01, 0.25, 0.5, 0.9):
        assert abs(sum(value < edge for value in values) / 10_000 - edge) < 0.02
