"""A store gives back the documents from any position, and says where it is damaged."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module

import pretrain
from pretrain.data.manifest import MANIFEST, Manifest, Split, damage
from pretrain.data.store import END, Store, encode_block, verify, write_shard
from pretrain.errors import InputError

# Two shards without tokens or documents, documents without tokens, and longer ones than several blocks.
SHARDS = [[5, 0, 40], [], [3], [0], [0, 0, 1, 100, 0], [16]]
BLOCK, VOCAB, EOS = 16, 359, 1


def write(directory: Path, documents: list[list[np.ndarray]], vocab_size=VOCAB, block_tokens=BLOCK) -> None:
    """A finished store of one split, of these documents of each shard."""
    directory.mkdir(exist_ok=True)
    settings = Manifest(
        task="task", vocabulary="v", vocab_size=vocab_size, block_tokens=block_tokens, splits={}
    )
    shards = []
    for number, of_shard in enumerate(documents):
        stream = np.concatenate([np.zeros(0, np.int32), *(np.append(each, END) for each in of_shard)])
        pieces = np.array_split(stream, 3)
        name = f"train-{number:05d}-of-{len(documents):05d}"
        shards.append(write_shard(directory, name, settings, np.ones(vocab_size, np.int32), pieces))
    split = Split(source="s", num_shards=len(shards), shards=tuple(shards))
    dataclasses.replace(settings, splits={"train": split}).write(directory / MANIFEST)


def random_documents(vocab_size=VOCAB) -> list[list[np.ndarray]]:
    rng = np.random.RandomState(0)
    return [[rng.randint(2, vocab_size, size).astype(np.int32) for size in sizes] for sizes in SHARDS]


@pytest.fixture
def documents(tmp_path):
    result = random_documents()
    write(tmp_path, result)
    return [document for shard in result for document in shard]


def test_every_range_of_the_documents_end_to_end(documents, tmp_path):
    store = Store.open(tmp_path, "train")
    expected = np.concatenate(documents)
    assert store.tokens == len(expected)
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            np.testing.assert_array_equal(store.read(start, stop), expected[start:stop])
    assert store.read(0, 9).dtype == store.read(4, 4).dtype == np.int32


def test_every_range_with_eos_after_each_document(documents, tmp_path):
    store = Store.open(tmp_path, "train", eos=EOS)
    expected = np.concatenate([np.append(document, EOS) for document in documents])
    assert store.tokens == len(expected)
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            np.testing.assert_array_equal(store.read(start, stop), expected[start:stop])


@pytest.mark.parametrize("length", [1, 7, 16, 55, 1000])
@pytest.mark.parametrize("eos", [None, EOS])
def test_chunks_are_all_of_it_once(documents, tmp_path, length, eos):
    store = Store.open(tmp_path, "train", eos)
    chunks = [store.chunk(index, length) for index in range(store.num_chunks(length))]
    assert {len(chunk) for chunk in chunks[:-1]} <= {length}
    assert 0 < len(chunks[-1]) <= length
    np.testing.assert_array_equal(np.concatenate(chunks), store.read(0, store.tokens))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 10**6)])
def test_what_is_not_in_the_store_is_refused(documents, tmp_path, start, stop):
    with pytest.raises(IndexError, match="of a store of 165"):
        Store.open(tmp_path, "train").read(start, stop)


def test_the_manifest_counts(documents, tmp_path):
    split = Store.open(tmp_path, "train").manifest.splits["train"]
    assert split.total("tokens") == split.total("text_bytes") == 165
    assert [shard.documents for shard in split.shards] == [len(sizes) for sizes in SHARDS]
    assert Manifest.read(tmp_path / MANIFEST).splits["train"] == split


@pytest.mark.parametrize(("vocab_size", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_ids_are_as_wide_as_the_vocabulary(tmp_path, vocab_size, width):
    last = np.array([vocab_size - 1, 0, 3], np.int32)
    write(tmp_path, [[last]], vocab_size)
    store = Store.open(tmp_path, "train")
    assert store.manifest.dtype.itemsize == width
    np.testing.assert_array_equal(store.read(0, 3), last)


def test_a_record_is_a_checksum_and_little_endian_ids(tmp_path):
    write(tmp_path, [[np.array([258, 3], np.int32)]])
    reader = array_record_module.ArrayRecordReader(str(tmp_path / "train-00000-of-00001.array_record"))
    assert reader.read_all() == [encode_block(b"\x02\x01\x03\x00")]
    assert "group_size:1," in reader.writer_options_string()


LARGE = "train-00000-of-00001.array_record"


@pytest.fixture
def large(tmp_path) -> np.ndarray:
    """40 blocks of random tokens, in one file."""
    tokens = np.random.RandomState(1).randint(2, VOCAB, 40 * 1024).astype(np.int32)
    write(tmp_path, [[tokens]], block_tokens=1024)
    return tokens


def test_threads_share_a_store(large, tmp_path):
    store, wrong = Store.open(tmp_path, "train"), []

    def read(seed: int) -> None:
        starts = np.random.RandomState(seed).randint(0, len(large) - 20, 500)
        wrong.extend(i for i in starts if not np.array_equal(store.read(i, i + 20), large[i : i + 20]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_named_and_nothing_wrong_is_read(large, tmp_path):
    path, sound = tmp_path / LARGE, (tmp_path / LARGE).read_bytes()
    found = 0
    for place in np.random.RandomState(2).randint(0, len(sound), 60).tolist():
        flip(path, place)
        problems = verify(tmp_path)
        store = Store.open(tmp_path, "train")
        for record in range(40):
            named = [problem for problem in problems if f"{path}, record {record}, is damaged (" in problem]
            lost = any(f"{path} is damaged" in problem for problem in problems)  # the index of the records
            if not named and not lost:
                expected = large[record * 1024 : (record + 1) * 1024]
                np.testing.assert_array_equal(store.read(record * 1024, (record + 1) * 1024), expected)
                continue
            found += 1
            with pytest.raises(InputError, match="delete that file and run the same `pretrain cache` again"):
                store.read(record * 1024, record * 1024 + 1)
        assert len(problems) <= 2
        path.write_bytes(sound)
    assert found >= 10
    assert verify(tmp_path) == []


def test_a_wrong_checksum_is_found_where_the_library_finds_nothing(large, tmp_path):
    blocks = [large[start : start + 1024].astype("<u2").tobytes() for start in range(0, len(large), 1024)]
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / LARGE), "group_size:1")
    for number, block in enumerate(blocks):
        record = encode_block(block)
        writer.write(b"\0\0\0\0" + block if number == 7 else encode_block(b"ab") if number == 9 else record)
    writer.close()
    change_size(tmp_path)
    assert verify(tmp_path) == [
        str(damage(f"{tmp_path / LARGE}, record 7,", "its checksum is wrong")),
        str(damage(f"{tmp_path / LARGE}, record 9,", "it does not hold 1024 tokens")),
    ]
    store = Store.open(tmp_path, "train")
    with pytest.raises(InputError, match="record 7, is damaged"):
        store.chunk(7, 1024)
    np.testing.assert_array_equal(store.chunk(8, 1024), large[8 * 1024 : 9 * 1024])


def change_size(directory: Path) -> None:
    """Makes the manifest say what size the file has now."""
    manifest = Manifest.read(directory / MANIFEST)
    split = manifest.splits["train"]
    size = (directory / LARGE).stat().st_size
    changed = dataclasses.replace(split, shards=(dataclasses.replace(split.shards[0], block_bytes=size),))
    dataclasses.replace(manifest, splits={"train": changed}).write(directory / MANIFEST)


def test_other_tokens_of_the_same_size_are_found(large, tmp_path):
    other = tmp_path / "other"
    write(other, [[large[::-1]]], block_tokens=1024)
    (other / LARGE).replace(tmp_path / LARGE)
    change_size(tmp_path)
    assert verify(tmp_path) == [str(damage(tmp_path / LARGE, "its tokens are others"))]


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_file_that_is_cut_off_is_named(large, tmp_path, kept):
    path = tmp_path / LARGE
    store = Store.open(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:kept])
    (problem,) = verify(tmp_path)
    assert problem.startswith(f"{path} is damaged (it has ")
    with pytest.raises(InputError, match=f"{LARGE} is damaged"):
        Store.open(tmp_path, "train")
    with pytest.raises(InputError, match=f"{LARGE} is damaged"):
        store.read(0, 10)  # of a store that was opened before


@pytest.mark.parametrize("suffix", ["array_record", "ends.npy"])
def test_a_missing_file_is_named(documents, tmp_path, suffix):
    path = tmp_path / f"train-00002-of-00006.{suffix}"
    store = Store.open(tmp_path, "train", EOS)
    path.unlink()
    assert verify(tmp_path) == [f"{path} is missing: run the same `pretrain cache` again to have it made."]
    with pytest.raises(InputError, match=f"{path} is missing"):
        Store.open(tmp_path, "train")
    with pytest.raises(InputError, match=path.name):
        store.read(0, store.tokens)


@pytest.mark.parametrize("place", [3, -1])
def test_damaged_ends_are_found(documents, tmp_path, place):
    path = tmp_path / "train-00004-of-00006.ends.npy"
    flip(path, place)
    (problem,) = verify(tmp_path)
    assert problem.startswith(f"{path} is damaged (")
    with pytest.raises(InputError, match=f"{path} is damaged"):
        store = Store.open(tmp_path, "train", EOS)
        store.read(0, store.tokens)
    without = Store.open(tmp_path, "train")
    assert len(without.read(0, without.tokens)) == 165


def test_another_split_is_refused_with_those_there_are(documents, tmp_path):
    with pytest.raises(InputError, match=r"has no split 'test' but train: .* --splits test"):
        Store.open(tmp_path, "test")


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path):
    def broken():
        yield np.arange(100, dtype=np.int32)
        raise KeyboardInterrupt

    settings = Manifest(task="t", vocabulary="v", vocab_size=VOCAB, block_tokens=4, splits={})
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "train-00000-of-00001", settings, np.ones(VOCAB, int), broken())
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_is_said(tmp_path):
    settings = Manifest(task="t", vocabulary="v", vocab_size=VOCAB, block_tokens=4, splits={})
    with pytest.raises(InputError, match="nowhere cannot be written to"):
        write_shard(tmp_path / "nowhere", "train-0", settings, np.ones(VOCAB, int), [])


def test_reading_needs_neither_tensorflow_nor_jax():
    """The modules alone: what their package imports is not theirs."""
    program = (
        "import sys, types\n"
        "package = types.ModuleType('pretrain.data')\n"
        f"package.__path__ = [{str(Path(pretrain.__file__).parent / 'data')!r}]\n"
        "sys.modules['pretrain.data'] = package\n"
        "import pretrain.data.store, pretrain.data.order\n"
        "print({'tensorflow', 'jax', 'seqio'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
