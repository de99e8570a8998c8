"""Text to text: supervised pairs, such as a question and its answer, or an instruction and what follows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import seqio
import tensorflow as tf

from pretrain.data import groups
from pretrain.data.converters import EncoderDecoderConverter, PrefixDecoderConverter
from pretrain.objectives.base import (
    Family,
    Objective,
    Preprocessor,
    check_family,
    check_lengths,
    check_of_chunks,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToText(Objective):
    """The model reads the inputs of a pair, in both directions, and writes its targets.

    For tasks with the features "inputs" and "targets", such as those of https://arxiv.org/abs/1910.10683,
    section 2.4, alone or mixed into pretraining. Pairs that are too long are cut at their end: the targets to
    their row, less EOS, and the inputs to theirs or, in a decoder, to what the targets leave of the row.

    Examples: {"inputs": int32 [up to lengths["inputs"]], "targets": int32 [up to lengths["targets"]]}.

    Attributes:
        family: the kind of model to train, "encoder_decoder" or "decoder".
    """

    reads: ClassVar[tuple[str, ...]] = ("inputs", "targets")
    family: Family = "encoder_decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self)
        check_of_chunks(self, "join_documents")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        if self.family == "decoder":
            check_lengths(self, lengths, targets=3)
        else:
            check_lengths(self, lengths, inputs=2, targets=2)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        raise NotImplementedError("TextToText makes its examples of pairs, not of chunks.")

    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (self._fit,)

    def _fit(self, pairs: tf.data.Dataset, sequence_length, output_features) -> tf.data.Dataset:
        self.check(sequence_length, output_features["targets"].vocabulary)

        def fit(group: Mapping[str, Any]) -> dict[str, tf.RaggedTensor]:
            pair = groups.ragged(group)
            row = sequence_length["targets"]
            targets = ended(pair["targets"], output_features["targets"], row)
            if self.family == "encoder_decoder":
                inputs = ended(pair["inputs"], output_features["inputs"], sequence_length["inputs"])
            else:
                inputs = _first(pair["inputs"], row - targets.row_lengths())
            return {"inputs": inputs, "targets": targets}

        read = pairs.map(lambda pair: {name: pair[name] for name in self.reads})
        return groups.each(read.ragged_batch(groups.size(sum(sequence_length.values()))), fit)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        inputs = corpus_features["inputs"]
        if self.family == "decoder":
            inputs = dataclasses.replace(inputs, add_eos=False)
        return {"inputs": inputs, "targets": corpus_features["targets"]}

    def converter(self, pack: bool) -> EncoderDecoderConverter | PrefixDecoderConverter:
        return PrefixDecoderConverter(pack) if self.family == "decoder" else EncoderDecoderConverter(pack)

    @property
    def bidirectional_prompt(self) -> bool:
        return self.family == "decoder"

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        ends = feature.add_eos and self.family == "encoder_decoder"
        return super().encode_prompt(text, feature) + ([feature.vocabulary.eos_id] if ends else [])


def _first(tokens: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """The first tokens of each sequence, at most so many, int64 [n]."""
    kept = tf.minimum(tokens.row_lengths(), lengths)
    return tf.RaggedTensor.from_tensor(tokens.to_tensor(), kept)


def ended(tokens: tf.RaggedTensor, feature: seqio.Feature, row: int) -> tf.RaggedTensor:
    """With EOS at the end where the feature says so, and no longer than the row."""
    if not feature.add_eos:
        return tokens[:, :row]
    return tf.concat([tokens[:, : row - 1], tf.fill([tokens.nrows(), 1], feature.vocabulary.eos_id)], axis=1)
