"""Prefix language modelling: read the first part in both directions, write the rest."""

import dataclasses
from collections.abc import Mapping
from typing import get_args

import seqio
import tensorflow as tf

from pretrain.data import noise, seeds
from pretrain.data.chunks import cut_documents
from pretrain.data.converters import EncoderDecoderConverter, PrefixDecoderConverter
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, Preprocessor, check_lengths


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

    family: Family = "decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in get_args(Family):
            raise InputError(f"PrefixLM.family must be one of {get_args(Family)}, not {self.family!r}.")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        if self.family == "decoder":
            check_lengths(self, lengths, targets=3)
        else:
            check_lengths(self, lengths, inputs=2, targets=2)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        targets = corpus_features["targets"]
        return {"inputs": dataclasses.replace(targets, add_eos=False), "targets": targets}

    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (self._cut, self._split, seqio.preprocessors.append_eos)

    def converter(self, pack: bool) -> EncoderDecoderConverter | PrefixDecoderConverter:
        return PrefixDecoderConverter(pack) if self.family == "decoder" else EncoderDecoderConverter(pack)

    @property
    def bidirectional_prompt(self) -> bool:
        return self.family == "decoder"

    def _cut(self, dataset: tf.data.Dataset, sequence_length, output_features) -> tf.data.Dataset:
        self.check(sequence_length, output_features["targets"].vocabulary)
        length = sequence_length["targets"] - 1 if self.family == "decoder" else sequence_length["inputs"]
        chunks = cut_documents(dataset, length, self.join_documents)
        return chunks.filter(lambda chunk: tf.size(chunk["targets"]) > 1)

    def _split(self, dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
        def split(chunk: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            tokens = chunk["targets"]
            length = tf.size(tokens)
            minimum = tf.maximum(1, length + 1 - sequence_length["targets"])
            prefix = noise.random_prefix_length(length, minimum, seed[0])
            return {"inputs": tokens[:prefix], "targets": tokens[prefix:]}

        seeded = seeds.with_seeds(dataset, num_seeds=1)
        return seeded.map(split, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
