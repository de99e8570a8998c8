"""Causal language modelling, the objective of GPT."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data.converters import DecoderConverter, EncoderDecoderConverter
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_family, check_lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Every token is predicted from those before it.

    The objective of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"). Each
    document is followed by EOS, then cut into chunks of lengths["targets"] tokens. With `join_documents`
    a chunk runs on into the next document, and a token sees the documents before its own in the chunk.

    family="encoder_decoder": the same for a decoder whose encoder reads EOS and nothing else, as a part of a
    mixture.

    Examples: {"targets": int32 [up to lengths["targets"]]}.

        documents   a b c | d e              lengths["targets"] = 4
        joined      a b c EOS / d e EOS
        each alone  a b c EOS / d e EOS      (with 3: a b c / EOS / d e EOS; joined a b c / EOS d e / EOS)
    """

    ends_documents: ClassVar[bool] = True
    family: Family = "decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self)

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        if self.family == "decoder":
            check_lengths(self, lengths, targets=2)
        else:
            check_lengths(self, lengths, inputs=1, targets=2)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        targets = corpus_features["targets"]
        return {"targets": targets} if self.family == "decoder" else {"inputs": targets, "targets": targets}

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["targets"]

    def examples(self, chunks: tf.RaggedTensor, seeds, lengths, vocabulary) -> dict[str, tf.RaggedTensor]:
        if self.family == "decoder":
            return {"targets": chunks}
        nothing = tf.fill([chunks.nrows(), 1], vocabulary.eos_id)
        return {"inputs": tf.RaggedTensor.from_tensor(nothing), "targets": chunks}

    def converter(self, pack: bool) -> DecoderConverter:
        return DecoderConverter(pack) if self.family == "decoder" else EncoderDecoderConverter(pack)

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        if self.family == "encoder_decoder":
            raise InputError(
                "CausalLM taught the decoder of an encoder-decoder to write without inputs: there is no "
                "prompt that it could go on from."
            )
        return super().encode_prompt(text, feature)
