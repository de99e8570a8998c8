"""Batch features of small examples, written out by hand."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain.data.converters import DecoderConverter, EncoderDecoderConverter, PrefixDecoderConverter
from pretrain.errors import InputError


def _dataset(*examples: dict[str, list[int]]) -> tf.data.Dataset:
    columns = {name: tf.ragged.constant([example[name] for example in examples]) for name in examples[0]}
    return tf.data.Dataset.from_tensor_slices(columns)


def _convert(converter, lengths, *examples) -> list[dict[str, np.ndarray]]:
    return list(converter(_dataset(*examples), lengths).as_numpy_iterator())


def _assert_row(row, expected):
    assert sorted(row) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], values, err_msg=name)
        assert row[name].dtype == (np.float32 if name == "decoder_loss_weights" else np.int32), name


def test_encoder_decoder_packed_keeps_an_id_0_inside_an_example():
    rows = _convert(
        EncoderDecoderConverter(pack=True),
        {"inputs": 8, "targets": 7},
        {"inputs": [7, 0, 5, 1], "targets": [3, 0, 1]},
        {"inputs": [8, 4, 1], "targets": [0, 4, 1]},
    )
    assert len(rows) == 1
    _assert_row(
        rows[0],
        {
            "encoder_input_tokens": [7, 0, 5, 1, 8, 4, 1, 0],
            "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 0],
            "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 0],
            "decoder_input_tokens": [0, 3, 0, 0, 0, 4, 0],
            "decoder_target_tokens": [3, 0, 1, 0, 4, 1, 0],
            "decoder_loss_weights": [1, 1, 1, 1, 1, 1, 0],
            "decoder_segment_ids": [1, 1, 1, 2, 2, 2, 0],
            "decoder_positions": [0, 1, 2, 0, 1, 2, 0],
        },
    )


def test_encoder_decoder_unpacked_has_segments_too():
    rows = _convert(
        EncoderDecoderConverter(pack=False),
        {"inputs": 4, "targets": 3},
        {"inputs": [7, 0, 1], "targets": [3, 1]},
        {"inputs": [8], "targets": [0, 4, 1]},
    )
    _assert_row(
        rows[0],
        {
            "encoder_input_tokens": [7, 0, 1, 0],
            "encoder_segment_ids": [1, 1, 1, 0],
            "encoder_positions": [0, 1, 2, 0],
            "decoder_input_tokens": [0, 3, 0],
            "decoder_target_tokens": [3, 1, 0],
            "decoder_loss_weights": [1, 1, 0],
            "decoder_segment_ids": [1, 1, 0],
            "decoder_positions": [0, 1, 0],
        },
    )
    np.testing.assert_array_equal(rows[1]["decoder_segment_ids"], [1, 1, 1])
    assert len(rows) == 2


@pytest.mark.parametrize("pack", [True, False])
def test_decoder(pack):
    row, *rest = _convert(DecoderConverter(pack), {"targets": 6}, {"targets": [3, 0, 1]}, {"targets": [4, 1]})
    _assert_row(
        row,
        {
            "decoder_input_tokens": [0, 3, 0, 0, 4, 0] if pack else [0, 3, 0, 0, 0, 0],
            "decoder_target_tokens": [3, 0, 1, 4, 1, 0] if pack else [3, 0, 1, 0, 0, 0],
            "decoder_loss_weights": [1, 1, 1, 1, 1, 0] if pack else [1, 1, 1, 0, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 2, 2, 0] if pack else [1, 1, 1, 0, 0, 0],
            "decoder_positions": [0, 1, 2, 0, 1, 0] if pack else [0, 1, 2, 0, 0, 0],
        },
    )
    assert len(rest) == (0 if pack else 1)


@pytest.mark.parametrize("pack", [True, False])
def test_prefix_decoder(pack):
    examples = [{"inputs": [7, 0], "targets": [3, 9, 1]}, {"inputs": [6], "targets": [1]}]
    row, *_ = _convert(PrefixDecoderConverter(pack), {"targets": 8}, *examples)
    second = slice(5, 7)
    expected = {
        "decoder_input_tokens": [0, 7, 0, 3, 9, 0, 6, 0],
        "decoder_target_tokens": [7, 0, 3, 9, 1, 6, 1, 0],
        "decoder_loss_weights": [0, 0, 1, 1, 1, 0, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 3, 4, 0, 1, 0],
        "decoder_prefix_mask": [1, 1, 1, 0, 0, 1, 1, 0],
    }
    expected = {name: np.array(values) for name, values in expected.items()}
    if not pack:
        for values in expected.values():
            values[second] = 0
    _assert_row(row, expected)


@pytest.mark.parametrize("prefix", [1, 2, 6])
def test_no_masked_input_is_a_token_to_predict(prefix):
    tokens = list(range(10, 18))
    (row,) = _convert(
        PrefixDecoderConverter(pack=False),
        {"targets": 8},
        {"inputs": tokens[:prefix], "targets": tokens[prefix:]},
    )
    masked = row["decoder_input_tokens"][row["decoder_prefix_mask"] == 1]
    np.testing.assert_array_equal(masked, [0, *tokens[:prefix]])
    to_predict = row["decoder_target_tokens"][row["decoder_loss_weights"] == 1]
    np.testing.assert_array_equal(to_predict, tokens[prefix:])
    assert not set(masked) & set(to_predict)
    # The last masked position is the one that predicts the first token after the prefix.
    assert np.flatnonzero(row["decoder_prefix_mask"])[-1] == np.flatnonzero(row["decoder_loss_weights"])[0]


def test_packed_rows_agree_with_seqio_where_seqio_is_right():
    examples = [
        {"inputs": [7, 8, 5, 1], "targets": [3, 9, 1]},
        {"inputs": [8, 4, 9, 3, 1], "targets": [4, 1]},
    ]
    lengths = {"inputs": 10, "targets": 7}
    (ours,) = _convert(EncoderDecoderConverter(pack=True), lengths, *examples)
    (theirs,) = _convert(seqio.EncDecFeatureConverter(pack=True), lengths, *examples)
    assert sorted(ours) == sorted(theirs)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


@pytest.mark.parametrize("pack", [True, False])
def test_feature_lengths_are_those_of_the_rows(pack):
    for converter, lengths in (
        (EncoderDecoderConverter(pack), {"inputs": 5, "targets": 4}),
        (DecoderConverter(pack), {"targets": 4}),
        (PrefixDecoderConverter(pack), {"targets": 4}),
    ):
        rows = converter(_dataset({"inputs": [3], "targets": [4, 1]}), lengths)
        declared = converter.get_model_feature_lengths(lengths)
        assert {name: spec.shape.as_list() for name, spec in rows.element_spec.items()} == {
            name: [length] for name, length in declared.items()
        }


def test_a_feature_that_the_examples_have_not_is_named():
    with pytest.raises(
        InputError, match="PrefixDecoderConverter reads the feature 'inputs', .* they have targets"
    ):
        PrefixDecoderConverter(pack=False)(_dataset({"targets": [4, 1]}), {"targets": 4})


def test_other_features_are_left_alone():
    """Strings, numbers, and features of one length in every example."""
    example = {"targets": [4, 1], "text": "ab", "number": 3.0, "pair": [1, 2]}
    dataset = tf.data.Dataset.from_tensors(example).repeat(3)
    rows = list(DecoderConverter(pack=True)(dataset, {"targets": 8}).as_numpy_iterator())
    assert [row["decoder_target_tokens"].tolist() for row in rows] == [[4, 1, 4, 1, 4, 1, 0, 0]]
