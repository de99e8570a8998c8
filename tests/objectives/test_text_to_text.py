"""Supervised pairs: what is read, what is written, and what becomes of pairs that are too long."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain.errors import InputError
from pretrain.objectives import TextToText
from pretrain.objectives.base import Objective

SIZES = [(3, 2), (20, 4), (5, 30), (0, 1), (40, 40), (9, 8)]


@pytest.fixture
def pairs(vocabulary):
    """A task of pairs with these sizes, and the pairs."""
    random = np.random.RandomState(0)
    made = [tuple(random.randint(3, 259, size).tolist() for size in sizes) for sizes in SIZES]

    def read(split, shuffle_files, seed=None):
        columns = [tf.ragged.constant(column, tf.int32, ragged_rank=1) for column in zip(*made, strict=True)]
        dataset = tf.data.Dataset.from_tensor_slices(tuple(columns))
        return dataset.map(lambda inputs, targets: {"inputs": inputs, "targets": targets, "other": targets})

    feature = seqio.Feature(vocabulary, add_eos=True)
    task = seqio.Task(
        "pairs",
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"inputs": feature, "targets": feature},
    )
    return task, made


def test_pairs_for_an_encoder_and_a_decoder(pairs, read):
    task, made = pairs
    examples = read(TextToText().bind(task), {"inputs": 16, "targets": 10})
    for example, (inputs, targets) in zip(examples, made, strict=True):
        assert example["inputs"].tolist() == [*inputs[:15], 1]
        assert example["targets"].tolist() == [*targets[:9], 1]


def test_pairs_for_a_decoder_share_its_row(pairs, read):
    task, made = pairs
    objective, lengths = TextToText(family="decoder"), {"targets": 24}
    examples = read(objective.bind(task), lengths)
    for example, (inputs, targets) in zip(examples, made, strict=True):
        assert example["targets"].tolist() == [*targets[:23], 1]
        assert example["inputs"].tolist() == inputs[: 24 - len(example["targets"])]
    dataset = objective.bind(task).get_dataset(lengths, "train", shuffle=False, seed=0)
    rows = list(objective.converter(True)(dataset, lengths).as_numpy_iterator())
    assert sum(row["decoder_loss_weights"].sum() for row in rows) == sum(len(e["targets"]) for e in examples)
    assert len(rows) < len(examples)


def test_it_makes_no_chunks():
    assert not TextToText().makes_chunks and issubclass(TextToText, Objective)


def test_what_it_cannot_do_is_refused(corpus, vocabulary):
    with pytest.raises(InputError, match="but text_to_text reads 'inputs' and 'targets': add 'inputs'"):
        TextToText().bind(corpus())
    with pytest.raises(InputError, match="family must be 'decoder' or 'encoder_decoder', not 'encoder'"):
        TextToText(family="encoder")
    with pytest.raises(InputError, match="TextToText.join_documents has no effect on the pairs of a task"):
        TextToText(join_documents=False)
    with pytest.raises(InputError, match="needs the lengths of inputs and targets"):
        TextToText().check({"targets": 3}, vocabulary)


def test_prompts_end_as_inputs_do(vocabulary):
    feature = seqio.Feature(vocabulary, add_eos=True)
    assert TextToText().encode_prompt("a", feature) == [100, 1]
    assert TextToText(family="decoder").encode_prompt("a", feature) == [100]
