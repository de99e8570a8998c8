"""A store is the corpus's documents end to end, and the same bytes however often caching was interrupted."""

import hashlib
import shutil
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import caching
from pretrain.data.chunks import cut_documents
from pretrain.data.manifest import MANIFEST, SETTINGS
from pretrain.data.store import Store, verify
from pretrain.data.vocabulary import fingerprint
from pretrain.errors import InputError
from tasks.corpus import corpus_task
from tasks.vocabularies import byte_vocabulary

FILES = {"train": 3, "validation": 1}
LINES = {"train": 300, "validation": 30}
SHARDS = sum(FILES.values())


def lines(split: str) -> list[str]:
    rng = np.random.RandomState(len(split))
    return [f"{split} {number} " + "wörd " * rng.randint(0, 60) for number in range(LINES[split])]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """The lines of each split, in files."""
    directory = tmp_path_factory.mktemp("text")
    for split in LINES:
        for number in range(FILES[split]):
            (directory / f"{split}-{number}.txt").write_text("\n".join(lines(split)[number :: FILES[split]]))
    return directory


class Lines(seqio.TextLineDataSource):
    """Lines of files, each the `text` of an example."""

    def get_dataset(self, *args, **kwargs):
        return super().get_dataset(*args, **kwargs).map(lambda line: {"text": line})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Each file is a shard."""
    monkeypatch.setattr(caching, "MIN_SHARD_BYTES", 1)


@pytest.fixture(scope="module")
def source(text) -> Lines:
    return Lines({split: str(text / f"{split}-*.txt") for split in LINES})


@pytest.fixture(scope="module")
def task(source) -> seqio.Task:
    return corpus_task("lines", source)


def cache(task, directory, splits=tuple(LINES), source="s", **options):
    return caching.cache(
        task,
        directory,
        splits=splits,
        identity=lambda split: f"{source} {split}",
        block_tokens=256,
        **options,
    )


def files(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


@pytest.fixture(scope="module")
def original(task, tmp_path_factory) -> Path:
    """A finished store of both splits."""
    directory = tmp_path_factory.mktemp("stores") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "MIN_SHARD_BYTES", 1)
        cache(task, directory)
    return directory


@pytest.fixture
def whole(original, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "whole")


@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("split", list(LINES))
def test_it_is_what_cutting_the_joined_documents_gives(task, whole, split, eos):
    """Shard by shard, since documents of different shards have no other order."""
    store = Store.open(whole, split, eos)
    expected = []
    for index in range(FILES[split]):
        shard = seqio.ShardInfo(index, FILES[split])
        documents = task.get_dataset(None, split, shuffle=False, shard_info=shard)
        if eos:
            documents = seqio.preprocessors.append_eos(documents, task.output_features)
        chunks = cut_documents(documents, 100, join=True)
        expected += [chunk["targets"] for chunk in chunks.as_numpy_iterator()]
    expected = np.concatenate(expected)
    assert store.tokens == len(expected)
    chunks = [store.chunk(index, 100) for index in range(store.num_chunks(100))]
    np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_one_shard_has_the_order_of_the_source(source, text, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "MIN_SHARD_BYTES", 2**30)
    task = corpus_task("lines", source)
    cache(task, tmp_path / "one", ["train"])
    documents = task.get_dataset(None, "train", shuffle=False)
    chunks = [chunk["targets"] for chunk in cut_documents(documents, 50, join=True).as_numpy_iterator()]
    store = Store.open(tmp_path / "one", "train")
    assert store.num_chunks(50) == len(chunks)
    for index, chunk in enumerate(chunks):
        np.testing.assert_array_equal(store.chunk(index, 50), chunk)


def test_the_manifest_says_what_there_is(task, whole):
    manifest = Store.open(whole, "train").manifest
    assert (manifest.task, manifest.vocab_size) == ("lines", 359)
    assert manifest.vocabulary == fingerprint(byte_vocabulary())
    for split in LINES:
        held = manifest.splits[split]
        assert (held.source, held.num_shards) == (f"s {split}", FILES[split])
        assert held.total("documents") == LINES[split]
        size = sum(len(line.encode()) for line in lines(split))
        assert held.total("text_bytes") == held.total("tokens") == size
    assert verify(whole) == []


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_store_goes_on_to_the_same_bytes(task, whole, tmp_path, after):
    def stop(progress):
        if progress.shards == after:
            raise Interrupted

    directory = tmp_path / "interrupted"
    with pytest.raises(Interrupted):
        cache(task, directory, report=stop)
    assert not (directory / MANIFEST).exists()
    (directory / "train-00002-of-00003.array_record.partial-1").write_bytes(b"half")
    before = {name: time for name, time in times(directory).items() if "partial" not in name}
    _, progress = cache(task, directory)
    assert progress.new_shards == SHARDS - after
    assert files(directory) == files(whole)
    assert before.items() <= times(directory).items()


def test_a_finished_store_is_left_alone(task, whole):
    before = times(whole)
    _, progress = cache(task, whole)
    assert (progress.new_shards, progress.new_tokens) == (0, 0)
    assert times(whole) == before


def damage_sidecar(path: Path) -> None:
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-00001-of-00003.array_record", Path.unlink),
        ("train-00001-of-00003.array_record", lambda path: path.write_bytes(path.read_bytes()[:1000])),
        ("train-00001-of-00003.ends.npy", Path.unlink),
        ("train-00001-of-00003.json", Path.unlink),
        ("train-00001-of-00003.json", damage_sidecar),
    ],
)
def test_a_damaged_shard_is_made_again_and_no_other(task, whole, name, damage):
    before = files(whole)
    damage(whole / name)
    _, progress = cache(task, whole)
    assert progress.new_shards == 1
    assert files(whole) == before


def test_a_shard_of_other_settings_is_made_again(task, whole, tmp_path):
    other = tmp_path / "other"
    cache(task, other, source="other")
    for path in other.glob("train-00002-*"):
        shutil.copy(path, whole / path.name)
    before = files(whole)
    _, progress = cache(task, whole)
    assert progress.new_shards == 1
    assert files(whole) != before  # its sidecar says again what it was made of
    assert verify(whole) == []


def test_a_split_is_added(task, whole, tmp_path):
    directory = tmp_path / "later"
    cache(task, directory, ["train"])
    assert list(Store.open(directory, "train").manifest.splits) == ["train"]
    _, progress = cache(task, directory, ["validation"])
    assert progress.new_shards == FILES["validation"]
    assert files(directory) == files(whole)
    assert cache(task, directory)[1].new_shards == 0


def test_another_corpus_is_refused_and_the_store_left_alone(source, task, whole):
    before = files(whole)
    other_vocabulary = corpus_task("lines", source, byte_vocabulary(extra_ids=10))
    for other, options, message in (
        (other_vocabulary, {}, "its vocabulary has 359 ids and the fingerprint "),
        (corpus_task("else", source), {}, "its task is 'lines', not 'else'"),
        (task, {"source": "t"}, "its train data are others; its validation data are others"),
    ):
        with pytest.raises(InputError, match="something else") as error:
            cache(other, whole, **options)
        assert message in str(error.value)
    with pytest.raises(InputError, match="its blocks have 256 tokens, not 4096"):
        caching.cache(task, whole, splits=["train"], identity=lambda split: f"s {split}")
    assert files(whole) == before


def test_an_unfinished_store_of_another_vocabulary_is_refused_too(source, whole):
    (whole / MANIFEST).unlink()
    with pytest.raises(InputError, match="its vocabulary has 359 ids"):
        cache(corpus_task("lines", source, byte_vocabulary(extra_ids=10)), whole)
    (whole / SETTINGS).write_text((whole / SETTINGS).read_text()[:-9])
    with pytest.raises(InputError, match=f"settings.json is damaged: delete {whole} and cache again"):
        cache(corpus_task("lines", source), whole)
    (whole / SETTINGS).unlink()
    with pytest.raises(InputError, match="is not empty and no store"):
        cache(corpus_task("lines", source), whole)


def test_shards_may_be_made_elsewhere(task, whole, tmp_path, monkeypatch):
    """What is not there is given away at once; a job that is given twice is done once."""
    directory, given, seen = Path("store"), [], []
    monkeypatch.chdir(tmp_path)

    def elsewhere(jobs):
        given.extend(jobs)
        for job in [*jobs, *jobs]:
            caching.maker(task)(job, lambda made: seen.append(made.finished))

    cache(task, directory, ["validation"])
    _, progress = cache(task, directory, elsewhere=elsewhere)
    assert [job.split for job in given] == ["train"] * FILES["train"] == ["train"] * sum(seen)
    assert all(job.directory.is_absolute() for job in given)
    assert (progress.shards, progress.new_shards) == (SHARDS, FILES["train"])
    assert progress.new_tokens == Store.open(whole, "train").tokens
    assert {name: digest for name, digest in files(whole).items() if "-of-" in name}.items() <= files(
        directory
    ).items()
    assert cache(task, directory, elsewhere=given.append)[1].new_shards == 0
    assert len(given) == FILES["train"]


def test_threads_give_a_shard_the_seeds_that_it_has_alone(source, tmp_path):
    """Were two built at a time, one would go on with the seeds of the other."""

    def slow(dataset):
        time.sleep(0.1)
        return dataset

    @seqio.map_over_dataset(num_seeds=1)
    def cut(example, seed):
        length = tf.random.stateless_uniform([], seed, maxval=9, dtype=tf.int32)
        return {"targets": example["targets"][:length]}

    task = corpus_task("lines", source)
    *before, placeholder = task.preprocessors
    task = task.replace(preprocessors=[*before, slow, cut, placeholder])

    def elsewhere(jobs):
        with ThreadPool(3) as pool:
            pool.map(lambda job: caching.maker(task)(job, lambda made: None), jobs)

    cache(task, tmp_path / "alone", ["train"])
    cache(task, tmp_path / "threads", ["train"], elsewhere=elsewhere)
    assert files(tmp_path / "threads") == files(tmp_path / "alone")


def test_shards_that_were_made_into_another_directory_are_missed(task, tmp_path):
    def elsewhere(jobs):
        for job in jobs[1:]:
            caching.maker(task)(job, lambda made: None)

    with pytest.raises(
        InputError, match=r"train-00000-of-00003, and .*store does not have it: take an --out"
    ):
        cache(task, tmp_path / "store", elsewhere=elsewhere)
    assert not (tmp_path / "store" / MANIFEST).exists()
    assert cache(task, tmp_path / "store")[1].new_shards == 1


def test_progress_counts_what_was_there(task, tmp_path):
    cache(task, tmp_path / "store", ["validation"])
    seen = []
    cache(task, tmp_path / "store", report=seen.append)
    assert (seen[0].shards, seen[0].documents, seen[0].new_tokens) == (1, LINES["validation"], 0)
    assert (seen[-1].shards, seen[-1].num_shards) == (SHARDS, SHARDS)
    assert seen[-1].documents == sum(LINES.values())
    assert seen[-1].new_tokens == Store.open(tmp_path / "store", "train").tokens
    assert seen[-1].num_documents is None and seen[-1].done == (SHARDS, SHARDS)


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [([10] * 3, 3), ([4] * 5, 2), ([1], 1), ([], 1), ([100] * 9, 4), (None, 4)],
    ids=["files", "small files", "one small", "none", "at most 4", "files that cannot be measured"],
)
def test_the_number_of_shards_is_that_of_the_source(sizes, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "MIN_SHARD_BYTES", 10)
    monkeypatch.setattr(caching, "MAX_SHARDS", 4)
    for number, size in enumerate(sizes or []):
        (tmp_path / str(number)).write_bytes(bytes(size))
    names = (
        ["nowhere"] * 7 if sizes is None else [str(tmp_path / str(number)) for number in range(len(sizes))]
    )
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
    monkeypatch.setattr(source, "list_shards", lambda split: names)
    assert caching.num_shards(source, "train") == shards


def with_ids(ids: list[list[int]], *preprocessors, splits=("train",), **feature) -> seqio.Task:
    """A task of these documents, whose tokens are known beforehand."""

    def documents(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": tf.constant(ids, tf.int32)})

    return seqio.Task(
        "ids",
        source=seqio.FunctionDataSource(documents, splits=splits),
        preprocessors=[seqio.CacheDatasetPlaceholder(), *preprocessors],
        output_features={"targets": seqio.Feature(byte_vocabulary(), **feature)},
    )


def test_documents_of_one_length_and_of_none(tmp_path):
    cache(with_ids([[3, 4], [5, 6]]), tmp_path / "two", ["train"])
    assert Store.open(tmp_path / "two", "train", eos=1).read(0, 6).tolist() == [3, 4, 1, 5, 6, 1]
    cache(with_ids([[], []]), tmp_path / "none", ["train"])
    assert Store.open(tmp_path / "none", "train", eos=1).read(0, 2).tolist() == [1, 1]
    empty = with_ids([[3]])
    empty = empty.replace(
        preprocessors=[lambda data: data.filter(lambda _: False), seqio.CacheDatasetPlaceholder()]
    )
    cache(empty, tmp_path / "empty", ["train"])
    assert Store.open(tmp_path / "empty", "train", eos=1).tokens == 0
    assert verify(tmp_path / "empty") == []


@pytest.mark.parametrize("ids", [[3, 359], [3, -1]])
def test_ids_that_the_vocabulary_does_not_have_are_refused(tmp_path, ids):
    with pytest.raises(InputError, match=r"has ids from .* but its vocabulary has 359"):
        cache(with_ids([ids]), tmp_path / "store", ["train"])
    assert list((tmp_path / "store").glob("train-*")) == []


@pytest.mark.parametrize(
    ("task", "splits", "message"),
    [
        (with_ids([[3]], seqio.preprocessors.append_eos), ["train"], "goes on after CacheDatasetPlaceholder"),
        (with_ids([[3]], dtype=tf.int64), ["train"], "has no feature 'targets' of int32 and rank 1"),
        (with_ids([[3]]), ["train", "test"], "has no split 'test': give --splits some of train"),
        (with_ids([[3]], splits=["a/b"]), ["a/b"], "The split 'a/b' cannot name a file"),
    ],
)
def test_what_is_no_corpus_is_refused_before_anything_is_written(tmp_path, task, splits, message):
    with pytest.raises(InputError, match=message):
        cache(task, tmp_path / "store", splits)
    assert not (tmp_path / "store").exists()
