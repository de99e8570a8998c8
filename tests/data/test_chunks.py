"""Cutting documents loses no token and repeats none."""

import numpy as np
import pytest
import tensorflow as tf

from pretrain.data.chunks import cut_documents

SIZES = [0, 3, 17, 0, 1, 40, 2, 5, 10, 0]


def _documents() -> list[np.ndarray]:
    return np.split(np.arange(sum(SIZES), dtype=np.int32), np.cumsum(SIZES)[:-1])


def _dataset() -> tf.data.Dataset:
    documents = tf.ragged.constant([document.tolist() for document in _documents()], dtype=tf.int32)
    return tf.data.Dataset.from_tensor_slices({"targets": documents, "title": ["a"] * len(SIZES)})


def _chunks(dataset) -> list[np.ndarray]:
    return [chunk["targets"] for chunk in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("length", [1, 4, 5, 1000])
def test_joined_documents_fill_every_chunk_but_the_last(length):
    chunks = _chunks(cut_documents(_dataset(), length, join=True))
    np.testing.assert_array_equal(np.concatenate(chunks), np.arange(sum(SIZES)))
    assert [len(chunk) for chunk in chunks[:-1]] == [length] * (len(chunks) - 1)
    assert 0 < len(chunks[-1]) <= length


@pytest.mark.parametrize("length", [1, 4, 5, 1000])
def test_documents_cut_alone_are_never_joined(length):
    chunks = _chunks(cut_documents(_dataset(), length, join=False))
    expected = [piece for document in _documents() for piece in _pieces(document, length)]
    assert [chunk.tolist() for chunk in chunks] == expected


def _pieces(document: np.ndarray, length: int) -> list[list[int]]:
    return [document[start : start + length].tolist() for start in range(0, len(document), length)]


@pytest.mark.parametrize("join", [True, False])
def test_only_empty_documents_make_no_chunk(join):
    empty = tf.data.Dataset.from_tensors({"targets": tf.zeros([0], tf.int32)}).repeat(3)
    assert _chunks(cut_documents(empty, 4, join)) == []


@pytest.mark.parametrize("join", [True, False])
def test_a_restored_iterator_continues_in_the_middle_of_a_document(join, tmp_path):
    dataset = cut_documents(_dataset().repeat(2), 4, join)
    everything = [chunk.tolist() for chunk in _chunks(dataset)]
    for position in (0, 1, 7, len(everything) - 1):
        iterator = iter(dataset)
        for _ in range(position):
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / str(position)))
        restored = iter(dataset)
        tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
        assert [chunk["targets"].numpy().tolist() for chunk in restored] == everything[position:]


def test_an_endless_stream_joins_its_epochs():
    chunks = _chunks(cut_documents(_dataset().repeat(), 50, join=True).take(3))
    np.testing.assert_array_equal(np.concatenate(chunks), np.tile(np.arange(78), 2)[:150])
