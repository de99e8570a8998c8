"""Prefix language modelling: read the first part in both directions, write the rest."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data import noise
from pretrain.data.converters import EncoderDecoderConverter, PrefixDecoderConverter
from pretrain.objectives.base import Family, Objective, check_family, check_lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    """Cuts a chunk at a uniformly random place; what comes after is predicted from what comes before.

    The objective of Liu et al. 2018 (https://arxiv.org/abs/1801.10198) as Raffel et al. 2020 use it
    (https://arxiv.org/abs/1910.10683, sections 3.2.1 and 3.3.1). A chunk of n tokens becomes

        inputs   its first s tokens
        targets  the other n - s, and EOS

    family="decoder": a chunk has lengths["targets"] - 1 tokens, s is uniform in [1, n - 1], and both parts
    share one row of lengths["targets"], the inputs masked as in `PrefixDecoderConverter`.

    family="encoder_decoder": a chunk has lengths["inputs"] tokens, and s is uniform in
    [max(1, n + 1 - lengths["targets"]), n - 1], so that the targets fit their row.

    A chunk of one token cannot be cut and is dropped: a document of one token that stands alone, or the
    last token of a finite dataset.

    Attributes:
        family: the kind of model to train, "decoder" or "encoder_decoder".
    """

    shortest_chunk: ClassVar[int] = 2
    family: Family = "decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self)

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        if self.family == "decoder":
            check_lengths(self, lengths, targets=3)
        else:
            check_lengths(self, lengths, inputs=2, targets=2)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        targets = corpus_features["targets"]
        return {"inputs": dataclasses.replace(targets, add_eos=False), "targets": targets}

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["targets"] - 1 if self.family == "decoder" else lengths["inputs"]

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        sizes = tf.cast(chunks.row_lengths(), tf.int32)
        minimum = tf.maximum(1, sizes + 1 - lengths["targets"])
        cuts = noise.random_prefix_lengths(sizes, minimum, seeds)
        inputs, targets = noise.cut_in_two(chunks, cuts)
        return {"inputs": inputs, "targets": targets}

    def converter(self, pack: bool) -> EncoderDecoderConverter | PrefixDecoderConverter:
        return PrefixDecoderConverter(pack) if self.family == "decoder" else EncoderDecoderConverter(pack)

    @property
    def bidirectional_prompt(self) -> bool:
        return self.family == "decoder"
