"""From task features to what a model reads: padded or packed rows, shifted inputs, segments, loss weights.

SeqIO's converters leave segment ids and positions out unless they pack, and take an id 0 for padding.
These always emit both, so attention masks and loss weights follow the segments and never a token's id.

Features of a row, all [length]; int32 but for the float32 weights:

    *_tokens               padded with 0; the decoder's input is its target, shifted right in each segment
    *_segment_ids          1, 2, ... for the examples in the row; 0 on padding
    *_positions            from 0 in each segment; 0 on padding
    *_loss_weights         1 where a target counts, else 0
    decoder_prefix_mask    1 where an input attends in both directions, else 0
    encoder_order          when an input is predicted, 0, 1, ...; -1 where it is not, and on padding
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import seqio
import tensorflow as tf

from pretrain.data import groups, packing
from pretrain.errors import InputError

Rows = dict[str, tf.Tensor]
Examples = Mapping[str, tf.RaggedTensor]
Lengths = Mapping[str, int]
Specs = Mapping[str, seqio.FeatureConverter.FeatureSpec]

_TOKENS = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)
_WEIGHTS = seqio.FeatureConverter.FeatureSpec(dtype=tf.float32)


class _SegmentConverter(seqio.FeatureConverter):
    """What the converters share: rows from `packing`, then one function of many of them."""

    PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, tf.DType]] = {}
    _READ: ClassVar[tuple[str, ...]]  # features of an example

    def __init__(self, pack: bool, open_rows: int = 16):
        """
        Args:
            pack: whole examples share a row, see `packing.pack`; False gives each a row of its own.
            open_rows: see `packing.pack`.
        """
        # `packing` raises at an example that is too long, and its rows have a static length.
        super().__init__(pack=pack, apply_length_check=False)
        self._open_rows = open_rows

    def get_model_feature_lengths(self, task_feature_lengths: Lengths) -> Lengths:
        """The length of each feature of a row."""
        source = {"encoder": "inputs", "decoder": "targets", "left": "inputs", "right": "targets"}
        return {name: task_feature_lengths[source[name.partition("_")[0]]] for name in self.MODEL_FEATURES}

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Lengths) -> tf.data.Dataset:
        if missing := sorted(set(self._READ) - set(ds.element_spec)):
            raise InputError(
                f"{type(self).__name__} reads the feature {missing[0]!r}, which the examples have not: "
                f"they have {', '.join(sorted(ds.element_spec))}."
            )
        lengths = self._row_lengths(task_feature_lengths)
        size = groups.size(sum(lengths.values()))
        examples = ds.map(lambda example: {name: example[name] for name in self._READ}).ragged_batch(size)

        def joined(group: Mapping[str, Any]) -> Examples:
            return self._joined(groups.ragged(group))

        if not self.pack:
            return groups.each(examples, lambda group: self._converted(packing.pad(joined(group), lengths)))
        rows = packing.pack(groups.each(examples, joined), lengths, self._open_rows)
        return groups.each(rows.batch(size), self._converted)

    def _joined(self, examples: Examples) -> Examples:
        """The features that share a row, of the task's; int32 [n, (tokens)] each."""
        return examples

    def _row_lengths(self, task_feature_lengths: Lengths) -> Lengths:
        """The length of each feature that `_joined` returns."""
        return task_feature_lengths

    def _converted(self, rows: Rows) -> Rows:
        """What the model reads of rows from `packing`, [n, length] each."""
        raise NotImplementedError


class EncoderConverter(_SegmentConverter):
    """For an encoder alone: it predicts, of each input, the target in its place; those that are chosen count.

    >>> example = {"inputs": [[7, 99, 5]], "targets": [[7, 4, 5]], "chosen": [[0, 1, 0]]}
    >>> dataset = tf.data.Dataset.from_tensor_slices(example)
    >>> for row in EncoderConverter(pack=False)(dataset, {"inputs": 4}).as_numpy_iterator():
    ...     for name in sorted(row):
    ...         print(f"{name:21}", row[name])
    encoder_input_tokens  [ 7 99  5  0]
    encoder_loss_weights  [0. 1. 0. 0.]
    encoder_positions     [0 1 2 0]
    encoder_segment_ids   [1 1 1 0]
    encoder_target_tokens [7 4 5 0]
    """

    _READ: ClassVar[tuple[str, ...]] = ("inputs", "targets", "chosen")
    TASK_FEATURES: ClassVar[Specs] = {"inputs": _TOKENS}
    MODEL_FEATURES: ClassVar[Specs] = {
        "encoder_input_tokens": _TOKENS,
        "encoder_target_tokens": _TOKENS,
        "encoder_loss_weights": _WEIGHTS,
        "encoder_segment_ids": _TOKENS,
        "encoder_positions": _TOKENS,
    }

    def _row_lengths(self, task_feature_lengths: Lengths) -> Lengths:
        return dict.fromkeys(self._READ, task_feature_lengths["inputs"])

    def _converted(self, rows: Rows) -> Rows:
        return {
            "encoder_input_tokens": rows["inputs"],
            "encoder_target_tokens": rows["targets"],
            "encoder_loss_weights": tf.cast(rows["chosen"], tf.float32),
            "encoder_segment_ids": rows["inputs_segment_ids"],
            "encoder_positions": rows["inputs_positions"],
        }


class PermutationConverter(EncoderConverter):
    """For a model of two streams: as `EncoderConverter`, and when each input is predicted.

    >>> tokens, chosen, order = [[7, 4, 5]], [[0, 1, 1]], [[-1, 1, 0]]
    >>> example = {"inputs": tokens, "targets": tokens, "chosen": chosen, "order": order}
    >>> dataset = tf.data.Dataset.from_tensor_slices(example)
    >>> for row in PermutationConverter(pack=False)(dataset, {"inputs": 4}).as_numpy_iterator():
    ...     print(row["encoder_order"], row["encoder_loss_weights"])
    [-1  1  0 -1] [0. 1. 1. 0.]
    """

    _READ: ClassVar[tuple[str, ...]] = (*EncoderConverter._READ, "order")
    MODEL_FEATURES: ClassVar[Specs] = {**EncoderConverter.MODEL_FEATURES, "encoder_order": _TOKENS}

    def _converted(self, rows: Rows) -> Rows:
        order = tf.where(rows["inputs_segment_ids"] > 0, rows["order"], -1)
        return {**super()._converted(rows), "encoder_order": order}


class DualEncoderConverter(_SegmentConverter):
    """For two encoders: the left one reads the inputs, the right one the targets; a pair has rows of its own.

    >>> dataset = tf.data.Dataset.from_tensor_slices({"inputs": [[7, 8]], "targets": [[9, 5]]})
    >>> for row in DualEncoderConverter(pack=False)(dataset, {"inputs": 2, "targets": 3}).as_numpy_iterator():
    ...     for name in sorted(row):
    ...         print(f"{name:26}", row[name])
    left_encoder_input_tokens  [7 8]
    left_encoder_positions     [0 1]
    left_encoder_segment_ids   [1 1]
    right_encoder_input_tokens [9 5 0]
    right_encoder_positions    [0 1 0]
    right_encoder_segment_ids  [1 1 0]
    """

    _READ: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    TASK_FEATURES: ClassVar[Specs] = {"inputs": _TOKENS, "targets": _TOKENS}
    MODEL_FEATURES: ClassVar[Specs] = {
        f"{side}_encoder_{name}": _TOKENS
        for side in ("left", "right")
        for name in ("input_tokens", "segment_ids", "positions")
    }

    def __init__(self, pack: bool):
        if pack:
            raise InputError("Rows of pairs become a vector each and cannot be packed: set pack=False.")
        super().__init__(pack)

    def _converted(self, rows: Rows) -> Rows:
        features = {"input_tokens": "", "segment_ids": "_segment_ids", "positions": "_positions"}
        return {
            f"{side}_encoder_{name}": rows[f"{source}{suffix}"]
            for side, source in (("left", "inputs"), ("right", "targets"))
            for name, suffix in features.items()
        }


class DecoderConverter(_SegmentConverter):
    """For a decoder alone: every target counts.

    >>> targets = tf.ragged.constant([[3, 0, 1], [4, 1]])
    >>> dataset = tf.data.Dataset.from_tensor_slices({"targets": targets})
    >>> for row in DecoderConverter(pack=True)(dataset, {"targets": 6}).as_numpy_iterator():
    ...     for name in sorted(row):
    ...         print(f"{name:21}", row[name])
    decoder_input_tokens  [0 3 0 0 4 0]
    decoder_loss_weights  [1. 1. 1. 1. 1. 0.]
    decoder_positions     [0 1 2 0 1 0]
    decoder_segment_ids   [1 1 1 2 2 0]
    decoder_target_tokens [3 0 1 4 1 0]
    """

    _READ: ClassVar[tuple[str, ...]] = ("targets",)
    TASK_FEATURES: ClassVar[Specs] = {"targets": _TOKENS}
    MODEL_FEATURES: ClassVar[Specs] = {
        "decoder_input_tokens": _TOKENS,
        "decoder_target_tokens": _TOKENS,
        "decoder_loss_weights": _WEIGHTS,
        "decoder_segment_ids": _TOKENS,
        "decoder_positions": _TOKENS,
    }

    def _converted(self, rows: Rows) -> Rows:
        targets, positions = rows["targets"], rows["targets_positions"]
        return {
            "decoder_input_tokens": tf.where(positions > 0, _shift_right(targets), 0),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": tf.cast(rows["targets_segment_ids"] > 0, tf.float32),
            "decoder_segment_ids": rows["targets_segment_ids"],
            "decoder_positions": positions,
        }


class EncoderDecoderConverter(DecoderConverter):
    """For an encoder and a decoder: the encoder reads the inputs, and every target counts.

    >>> inputs, targets = tf.ragged.constant([[7, 0, 5], [8]]), tf.ragged.constant([[3, 1], [4, 9, 1]])
    >>> dataset = tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})
    >>> convert = EncoderDecoderConverter(pack=True)
    >>> for row in convert(dataset, {"inputs": 5, "targets": 6}).as_numpy_iterator():
    ...     for name in sorted(row):
    ...         print(f"{name:21}", row[name])
    decoder_input_tokens  [0 3 0 4 9 0]
    decoder_loss_weights  [1. 1. 1. 1. 1. 0.]
    decoder_positions     [0 1 0 1 2 0]
    decoder_segment_ids   [1 1 2 2 2 0]
    decoder_target_tokens [3 1 4 9 1 0]
    encoder_input_tokens  [7 0 5 8 0]
    encoder_positions     [0 1 2 0 0]
    encoder_segment_ids   [1 1 1 2 0]
    """

    _READ: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    TASK_FEATURES: ClassVar[Specs] = {"inputs": _TOKENS, "targets": _TOKENS}
    MODEL_FEATURES: ClassVar[Specs] = {
        "encoder_input_tokens": _TOKENS,
        "encoder_segment_ids": _TOKENS,
        "encoder_positions": _TOKENS,
        **DecoderConverter.MODEL_FEATURES,
    }

    def _converted(self, rows: Rows) -> Rows:
        return {
            "encoder_input_tokens": rows["inputs"],
            "encoder_segment_ids": rows["inputs_segment_ids"],
            "encoder_positions": rows["inputs_positions"],
            **super()._converted(rows),
        }


class PrefixDecoderConverter(DecoderConverter):
    """For a decoder that reads a prefix in both directions: only what follows the prefix counts.

    Its examples have "inputs", the k tokens of the prefix, and "targets", what follows it; both share the
    row of "targets". The prefix mask covers k + 1 inputs: the start (0) and the prefix. The last of them
    predicts the first token after the prefix, so no masked input is a token that is to be predicted.

    >>> inputs, targets = tf.ragged.constant([[7, 8], [6]]), tf.ragged.constant([[3, 9, 1], [1]])
    >>> dataset = tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})
    >>> for row in PrefixDecoderConverter(pack=True)(dataset, {"targets": 8}).as_numpy_iterator():
    ...     for name in sorted(row):
    ...         print(f"{name:21}", row[name])
    decoder_input_tokens  [0 7 8 3 9 0 6 0]
    decoder_loss_weights  [0. 0. 1. 1. 1. 0. 1. 0.]
    decoder_positions     [0 1 2 3 4 0 1 0]
    decoder_prefix_mask   [1 1 1 0 0 1 1 0]
    decoder_segment_ids   [1 1 1 1 1 2 2 0]
    decoder_target_tokens [7 8 3 9 1 6 1 0]
    """

    _READ: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    MODEL_FEATURES: ClassVar[Specs] = {**DecoderConverter.MODEL_FEATURES, "decoder_prefix_mask": _TOKENS}

    def _joined(self, examples: Examples) -> Examples:
        prefix, suffix = examples["inputs"], examples["targets"]
        # The mark travels as one more feature, so it is packed and padded as the tokens are.
        in_prefix = tf.concat([tf.ones_like(prefix), tf.zeros_like(suffix)], axis=1)
        return {"targets": tf.concat([prefix, suffix], axis=1), "in_prefix": in_prefix}

    def _row_lengths(self, task_feature_lengths: Lengths) -> Lengths:
        return dict.fromkeys(("targets", "in_prefix"), task_feature_lengths["targets"])

    def _converted(self, rows: Rows) -> Rows:
        features = super()._converted(rows)
        in_prefix, positions = rows["in_prefix"], rows["targets_positions"]
        reads_prefix = tf.where(positions > 0, _shift_right(in_prefix), 1)
        return {
            **features,
            "decoder_loss_weights": features["decoder_loss_weights"] * (1.0 - tf.cast(in_prefix, tf.float32)),
            "decoder_prefix_mask": tf.where(rows["targets_segment_ids"] > 0, reads_prefix, 0),
        }


def _shift_right(tokens: tf.Tensor) -> tf.Tensor:
    return tf.pad(tokens[:, :-1], [[0, 0], [1, 0]])
