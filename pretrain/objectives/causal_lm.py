"""Causal language modelling, the objective of GPT."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data.converters import DecoderConverter
from pretrain.objectives.base import Family, Objective, check_lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Every token is predicted from those before it.

    The objective of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"). Each
    document is followed by EOS, then cut into chunks of lengths["targets"] tokens. With `join_documents`
    a chunk runs on into the next document, and a token sees the documents before its own in the chunk.

    Examples: {"targets": int32 [up to lengths["targets"]]}.

        documents   a b c | d e              lengths["targets"] = 4
        joined      a b c EOS / d e EOS
        each alone  a b c EOS / d e EOS      (with 3: a b c / EOS / d e EOS; joined a b c / EOS d e / EOS)
    """

    family: ClassVar[Family] = "decoder"
    ends_documents: ClassVar[bool] = True

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, targets=2)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        return {"targets": corpus_features["targets"]}

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["targets"]

    def examples(self, chunks: tf.RaggedTensor, seeds, lengths, vocabulary) -> dict[str, tf.RaggedTensor]:
        return {"targets": chunks}

    def converter(self, pack: bool) -> DecoderConverter:
        return DecoderConverter(pack)
