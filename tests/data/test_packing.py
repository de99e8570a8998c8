"""Packed and padded rows hold every example whole, and say where each lies."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain.data import packing

LENGTHS = {"inputs": 32, "targets": 12}


def _examples(count: int = 200, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Distinct examples: the first input of number i is 1000 + i; about a tenth of the rest are id 0."""
    random = np.random.RandomState(seed)

    def tokens(length):
        return (random.randint(1, 100, length) * (random.rand(length) < 0.9)).astype(np.int32)

    examples = [
        {"inputs": tokens(random.randint(1, 33)), "targets": tokens(random.randint(0, 13))}
        for _ in range(count)
    ]
    for number, example in enumerate(examples):
        example["inputs"][0] = 1000 + number
    return examples


def _dataset(examples) -> tf.data.Dataset:
    columns = {
        name: tf.ragged.constant(
            [example[name].tolist() for example in examples], dtype=tf.int32, ragged_rank=1
        )
        for name in LENGTHS
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def _rows(dataset) -> list[dict[str, np.ndarray]]:
    return list(dataset.as_numpy_iterator())


def _padded(dataset) -> list[dict[str, np.ndarray]]:
    (examples,) = dataset.ragged_batch(1000)
    rows = packing.pad(examples, LENGTHS)
    return [{name: rows[name][row].numpy() for name in rows} for row in range(examples["inputs"].nrows())]


def _unpacked(rows) -> list[dict[str, list[int]]]:
    """The examples in the rows; asserts that segments are contiguous and positions count from 0."""
    examples = []
    for row in rows:
        segments = max(row[f"{name}_segment_ids"].max() for name in LENGTHS)
        for segment in range(1, segments + 1):
            example = {}
            for name in LENGTHS:
                columns = np.flatnonzero(row[f"{name}_segment_ids"] == segment)
                np.testing.assert_array_equal(np.diff(columns), 1)
                np.testing.assert_array_equal(row[f"{name}_positions"][columns], np.arange(len(columns)))
                example[name] = row[name][columns].tolist()
            examples.append(example)
        for name in LENGTHS:
            segment_ids = row[f"{name}_segment_ids"]
            padding = segment_ids == 0
            assert (np.diff(padding.astype(int)) >= 0).all(), "padding comes last"
            assert (np.diff(segment_ids[~padding]) >= 0).all()
            assert not row[name][padding].any() and not row[f"{name}_positions"][padding].any()
    return examples


def _sorted(examples) -> list[tuple]:
    return sorted((list(example["inputs"]), list(example["targets"])) for example in examples)


@pytest.mark.parametrize("open_rows", [1, 3, 16])
def test_packing_loses_nothing_and_splits_nothing(open_rows):
    examples = _examples()
    rows = _rows(packing.pack(_dataset(examples), LENGTHS, open_rows))
    assert _sorted(_unpacked(rows)) == _sorted(examples)
    assert len(rows) < len(examples)
    for row in rows:
        assert {name: values.shape for name, values in row.items()} == {
            name + suffix: (LENGTHS[name],)
            for name in LENGTHS
            for suffix in ("", "_segment_ids", "_positions")
        }
        assert {values.dtype for values in row.values()} == {np.dtype(np.int32)}


def test_padding_keeps_order_and_gives_each_example_a_row():
    examples = _examples(40)
    rows = _padded(_dataset(examples))
    unpacked = _unpacked(rows)
    assert unpacked == [{name: tokens.tolist() for name, tokens in example.items()} for example in examples]
    assert len(rows) == len(examples)


def test_shapes_are_static():
    packed = packing.pack(_dataset(_examples(2)), LENGTHS)
    padded = _dataset(_examples(2)).ragged_batch(2).map(lambda examples: packing.pad(examples, LENGTHS))
    for rows, before in ((packed, []), (padded, [None])):
        assert {name: spec.shape.as_list() for name, spec in rows.element_spec.items()} == {
            name + suffix: [*before, LENGTHS[name]]
            for name in LENGTHS
            for suffix in ("", "_segment_ids", "_positions")
        }


def test_an_example_goes_to_the_fullest_row_that_has_room():
    sizes = [6, 8, 2, 5, 3]
    dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[n] * n for n in sizes]))
    rows = _rows(packing.pack(dataset.map(lambda tokens: {"targets": tokens}), {"targets": 10}, open_rows=2))
    assert [row["targets"].tolist() for row in rows] == [
        [8] * 8 + [2] * 2,  # closed by 5, which fits neither row
        [6] * 6 + [3] * 3 + [0],
        [5] * 5 + [0] * 5,
    ]


def test_a_row_may_be_exactly_full():
    dataset = tf.data.Dataset.from_tensors({"inputs": tf.range(1, 33), "targets": tf.range(1, 13)}).repeat(3)
    rows = _rows(packing.pack(dataset, LENGTHS, open_rows=2))
    assert len(rows) == 3 and all((row["inputs_segment_ids"] == 1).all() for row in rows)


def test_a_feature_may_be_empty_in_more_examples_than_its_row_is_long():
    example = {"inputs": tf.constant([7]), "targets": tf.zeros([0], tf.int32)}
    last = {"inputs": tf.constant([8]), "targets": tf.constant([4, 1])}
    dataset = tf.data.Dataset.from_tensors(example).repeat(20).concatenate(tf.data.Dataset.from_tensors(last))
    (row,) = _rows(packing.pack(dataset, LENGTHS, open_rows=2))
    assert row["targets_segment_ids"].tolist() == [21, 21] + [0] * 10
    assert row["targets_positions"].tolist() == [0, 1] + [0] * 10
    assert row["inputs_segment_ids"].tolist() == [*range(1, 22)] + [0] * 11


def test_an_empty_dataset_has_no_rows():
    assert _rows(packing.pack(_dataset(_examples(3)).take(0), LENGTHS)) == []


def test_an_example_longer_than_its_row_is_an_error():
    example = {"inputs": np.arange(5), "targets": np.arange(13)}
    for arrange in (_padded, lambda dataset: _rows(packing.pack(dataset, LENGTHS))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="targets must be cut"):
            arrange(_dataset([example]))


def test_packing_an_endless_dataset_repeats_itself_bit_for_bit():
    dataset = packing.pack(_dataset(_examples(30)).repeat(), LENGTHS, open_rows=4)
    first, again = _rows(dataset.take(50)), _rows(dataset.take(50))
    for row, same in zip(first, again, strict=True):
        for name in row:
            np.testing.assert_array_equal(row[name], same[name])


def test_a_restored_iterator_continues_with_its_open_rows(tmp_path):
    dataset = packing.pack(_dataset(_examples(120)), LENGTHS, open_rows=8)
    rows = _rows(dataset)
    for position in (0, 1, len(rows) // 2, len(rows) - 3):  # the last one while the open rows are flushed
        iterator = iter(dataset)
        for _ in range(position):
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / str(position)))
        restored = iter(dataset)
        tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
        rest = [{name: values.numpy() for name, values in row.items()} for row in restored]
        assert len(rest) == len(rows) - position
        for row, expected in zip(rest, rows[position:], strict=True):
            for name in expected:
                np.testing.assert_array_equal(row[name], expected[name])


def test_rows_are_fuller_than_next_fit_makes_them():
    """Random pairs of 5-200 inputs and 3-60 targets: the targets run out first, at 81% of the inputs."""
    random = np.random.RandomState(0)
    sizes = {"inputs": random.randint(5, 201, 2000), "targets": random.randint(3, 61, 2000)}
    lengths = {"inputs": 512, "targets": 128}
    dataset = tf.data.Dataset.from_tensor_slices(sizes).map(
        lambda size: {name: tf.ones([size[name]], tf.int32) for name in lengths}
    )

    def fill(rows) -> dict[str, float]:
        count = int(rows.reduce(np.int64(0), lambda total, _: total + 1))
        return {name: sizes[name].sum() / (count * length) for name, length in lengths.items()}

    ours = fill(packing.pack(dataset, lengths))
    next_fit = fill(seqio.utils.trim_and_pack_dataset(dataset, lengths))
    assert ours["targets"] > 0.95 > 0.82 > next_fit["targets"]
    assert ours["inputs"] > next_fit["inputs"] + 0.1
