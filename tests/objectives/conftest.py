"""A small corpus: documents of random bytes, in a task that ends where the corpus ends."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
SIZES = (700, 3, 61, 250, 0, 1, 130, 410, 33, 2, 96, 515)


def _documents() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return [random.randint(3, 259, size).astype(np.int32) for size in SIZES]


def _corpus(name: str = "corpus", placeholder: bool = True, documents=None, **kwargs) -> seqio.Task:
    tokens = [document.tolist() for document in (_documents() if documents is None else documents)]

    def read(split, shuffle_files, seed=None):
        del split
        dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(tokens, tf.int32, ragged_rank=1))
        dataset = dataset.map(lambda document: {"targets": document})
        return dataset.shuffle(len(tokens), seed=seed) if shuffle_files else dataset

    kwargs.setdefault("output_features", {"targets": seqio.Feature(VOCABULARY, add_eos=True)})
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()] if placeholder else [],
        **kwargs,
    )


@pytest.fixture
def vocabulary() -> seqio.Vocabulary:
    return VOCABULARY


@pytest.fixture
def documents() -> list[np.ndarray]:
    """The documents of `corpus()`, int32 [tokens] each, one of them empty."""
    return _documents()


@pytest.fixture
def corpus():
    """Makes a corpus: corpus(name, placeholder, documents, ...)."""
    return _corpus


@pytest.fixture
def read():
    """The examples of a bound task in order, as dicts of numpy arrays: read(task, lengths, take=, ...)."""

    def read(task, lengths, take=None, **kwargs) -> list[dict[str, np.ndarray]]:
        kwargs = {"shuffle": False, "seed": 0, "num_epochs": 1, **kwargs}
        dataset = task.get_dataset(lengths, "train", **kwargs)
        return list((dataset if take is None else dataset.take(take)).as_numpy_iterator())

    return read
