"""Permutation language modelling, the objective of XLNet."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data.converters import PermutationConverter
from pretrain.objectives.base import Family, Objective, check_lengths, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class PermutationLM(Objective):
    """Predicts some tokens of a chunk one after the other, in a random order, from the rest and those before.

    The objective of Yang et al. 2019 (https://arxiv.org/abs/1906.08237, section 2.2) with its partial
    prediction (section 2.3): the tokens that are not chosen come first in the order, and are context that
    every token sees. Nothing is hidden in the inputs; it is the model that must not look (two streams):

        chunk    the  quick brown fox   jumps
        chosen   0    1     1     0     1
        order    -1   2     0     -1    1       "brown" of "the", "fox"; "quick" of all the others

    Which are chosen, and their order, is drawn anew each time a chunk is read. Each document is followed by
    EOS, then cut into chunks of lengths["inputs"] tokens; EOS is never chosen.

    Examples: {"inputs", "targets", "chosen", "order": int32 [up to lengths["inputs"]] each}.

    Attributes:
        predicted: share of the tokens that is predicted, in (0, 1): 1/K of the paper.
        max_span: the most tokens that are chosen together; n of them come as often as 1/n says, as in the
            authors' code. The order is one of tokens all the same.
    """

    family: ClassVar[Family] = "two_stream"
    ends_documents: ClassVar[bool] = True
    predicted: float = 1 / 6
    max_span: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, predicted="(0, 1)")
        check_numbers(self, whole=True, max_span="[1, inf)")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, inputs=2)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["inputs"]

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        tokens = chunks.to_tensor(default_value=vocabulary.pad_id)
        inside = tf.sequence_mask(chunks.row_lengths(), tf.shape(tokens)[1])
        units = tf.broadcast_to(tf.range(tf.shape(tokens)[1]), tf.shape(tokens))
        if self.max_span > 1:
            units = corruption.ngrams(units, self.max_span, seeds, draw=2)
        eligible = inside & (tokens != vocabulary.eos_id)
        chosen = corruption.chosen(units, eligible, self.predicted, seeds, draw=0)
        features = {
            "inputs": tokens,
            "targets": tokens,
            "chosen": tf.cast(chosen, tf.int32),
            "order": corruption.ranks(chosen, seeds, draw=3),
        }
        return {name: tf.RaggedTensor.from_tensor(x, chunks.row_lengths()) for name, x in features.items()}

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        tokens = corpus_features["targets"]
        marks = seqio.Feature(seqio.PassThroughVocabulary(size=2), add_eos=False)
        return {"inputs": tokens, "targets": tokens, "chosen": marks, "order": marks}

    def converter(self, pack: bool) -> PermutationConverter:
        return PermutationConverter(pack)

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        return super().complete((), targets, vocabulary)  # the targets are the whole text
