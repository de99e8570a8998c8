"""Chunks are found by their numbers, and are those that a stream of the documents is cut into."""

import dataclasses

import numpy as np
import pytest

from pretrain.data import manifest, store, store_chunks
from pretrain.data.store_chunks import OfAll, OfEach

EOS = 1


@pytest.fixture
def documents():
    """Of all lengths: none, less than a chunk, chunks without a rest."""
    random = np.random.RandomState(0)
    sizes = [0, 0, 5, 12, 30, 1, *random.randint(0, 40, 50), 0]
    return [random.randint(2, 100, size).astype(np.int32) for size in sizes]


def written(directory, documents, num_shards=4):
    directory.mkdir()
    split = manifest.Split(source="s", num_shards=num_shards)
    settings = manifest.Manifest(
        task="numbers", vocabulary="v", vocab_size=100, block_tokens=8, splits={"train": split}
    )
    shards = []
    for index, part in enumerate(np.array_split(np.arange(len(documents)), num_shards)):
        pieces = [piece for i in part for piece in (documents[i], np.array([store.END], np.int32))]
        name = f"train-{index:05}-of-{num_shards:05}"
        shards.append(store.write_shard(directory, name, settings, np.ones(100, np.int64), pieces))
    full = dataclasses.replace(split, shards=tuple(shards))
    manifest.finish(directory, dataclasses.replace(settings, splits={"train": full}))
    return directory


def cut(tokens: np.ndarray, length: int, shortest: int) -> list[list[int]]:
    chunks = [tokens[first : first + length].tolist() for first in range(0, len(tokens), length)]
    return [chunk for chunk in chunks if len(chunk) >= shortest]


@pytest.mark.parametrize("eos", [None, EOS])
@pytest.mark.parametrize(("length", "shortest"), [(6, 1), (6, 2), (6, 6), (1, 1), (100, 1), (100, 50)])
@pytest.mark.parametrize("group", [1, 3, 256])
def test_the_chunks_of_each_document(documents, tmp_path, monkeypatch, eos, length, shortest, group):
    monkeypatch.setattr(store_chunks, "_GROUP", group)
    opened = store.Store.open(written(tmp_path / "store", documents), "train", eos)
    chunks = OfEach(opened, length, shortest)
    ended = [np.append(document, [] if eos is None else [eos]).astype(int) for document in documents]
    expected = [chunk for document in ended for chunk in cut(document, length, shortest)]
    assert chunks.number == len(expected)
    backwards = reversed(range(chunks.number))
    assert [chunks.read(index).tolist() for index in backwards] == expected[::-1]


@pytest.mark.parametrize("shortest", [1, 2, 50])
def test_the_chunks_of_all_documents(documents, tmp_path, shortest):
    opened = store.Store.open(written(tmp_path / "store", documents), "train")
    chunks = OfAll(opened, 50, shortest)
    expected = cut(np.concatenate(documents), 50, shortest)
    assert [chunks.read(index).tolist() for index in range(chunks.number)] == expected


def test_a_shard_without_documents(documents, tmp_path):
    opened = store.Store.open(written(tmp_path / "store", documents[:3], num_shards=4), "train")
    chunks = OfEach(opened, 4)
    assert [chunks.read(index).tolist() for index in range(chunks.number)] == cut(documents[2], 4, 1)
