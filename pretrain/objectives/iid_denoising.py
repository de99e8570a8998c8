"""I.i.d. denoising: each token is hidden by itself, where span corruption hides spans."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import seqio
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data.converters import EncoderDecoderConverter
from pretrain.data.seeds import uniform
from pretrain.data.vocabulary import Ids, num_sentinels
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_lengths, check_numbers
from pretrain.objectives.span_corruption import gaps_to_fill, merge_spans


@dataclasses.dataclass(frozen=True, kw_only=True)
class IidDenoising(Objective):
    """Hides each token with one probability; hidden tokens that touch share a sentinel.

    "I.i.d. noise, replace spans" of Raffel et al. 2020 (https://arxiv.org/abs/1910.10683, table 3), token for
    token what `t5` makes of the same hidden tokens; or, with `drop`, "i.i.d. noise, drop tokens":

        chunk    Thank you for inviting me to your party last week
        inputs   Thank you <S0> me to your party <S1> week EOS
        targets  <S0> for inviting <S1> last <S2> EOS
        dropped  inputs  Thank you me to your party week EOS     targets  for inviting last EOS

    The first token of a chunk is never hidden. Where chance hides more than the sentinels or the targets
    have room for, the rest of the chunk stays as it is; `t5` runs over into real vocabulary.

    Examples: {"inputs": int32 [up to lengths["inputs"]], "targets": int32 [up to lengths["targets"]]}.

    Attributes:
        noise_density: probability that a token is hidden, in (0, 1).
        drop: no sentinels.
    """

    family: ClassVar[Family] = "encoder_decoder"
    shortest_chunk: ClassVar[int] = 2
    noise_density: float = 0.15
    drop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, noise_density="(0, 1)")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, inputs=3, targets=4)
        # By chance there are more than on average, in one chunk of hundreds more than a quarter.
        expected = self._expected_targets(self.chunk_length(lengths))
        if lengths["targets"] < (least := expected * 5 // 4):
            raise InputError(
                f"lengths['targets'] is {lengths['targets']}, but IidDenoising hides about "
                f"{expected} tokens and sentinels of {lengths['inputs']} inputs, and by chance more: "
                f"set it to {least}."
            )
        if not self.drop and (sentinels := num_sentinels(vocabulary)) < 2:
            raise InputError(
                f"IidDenoising needs sentinels, but the vocabulary has {sentinels or 'none'}: give it "
                "extra_ids, or set drop=True."
            )
        spans = self._expected_spans(self.chunk_length(lengths))
        if not self.drop and sentinels < (least := spans * 5 // 4):
            raise InputError(
                f"IidDenoising hides about {spans} spans of {lengths['inputs']} inputs, and by chance more, "
                f"but the vocabulary has {sentinels} sentinels: give it extra_ids={least}, shorten "
                "lengths['inputs'], or set drop=True."
            )

    def _expected_spans(self, tokens: int) -> int:
        return int(tokens * self.noise_density * (1 - self.noise_density)) + 1

    def _expected_targets(self, tokens: int) -> int:
        return int(tokens * self.noise_density) + 2 + (0 if self.drop else self._expected_spans(tokens))

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["inputs"] - 1

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        sizes = tf.cast(chunks.row_lengths(), tf.int32)[:, tf.newaxis]
        places = tf.range(tf.maximum(tf.reduce_max(sizes), 0))  # of no chunks, the greatest is the least int
        lots = uniform(seeds, tf.size(places))
        hidden = (lots < self.noise_density) & (places > 0) & (places < sizes)
        # A chunk that chance leaves whole teaches nothing: its last token is hidden.
        hidden |= ~tf.reduce_any(hidden, axis=1, keepdims=True) & (places == sizes - 1)
        hidden = self._that_fit(hidden, lengths["targets"], num_sentinels(vocabulary))
        if self.drop:
            inside = places < sizes
            return {
                "inputs": corruption.without(chunks, hidden),
                "targets": tf.ragged.boolean_mask(chunks.to_tensor(), hidden & inside),
            }
        inputs, targets = corruption.unique_sentinels(chunks, hidden, vocabulary.vocab_size)
        return {"inputs": inputs, "targets": targets}

    def _that_fit(self, hidden: tf.Tensor, targets_length: int, sentinels: int) -> tf.Tensor:
        """Of the hidden tokens the first ones, for which there is room; the targets end in EOS."""
        number = tf.cumsum(tf.cast(hidden, tf.int32), axis=1)
        if self.drop:
            return hidden & (number <= targets_length - 1)
        begins = hidden & ~tf.pad(hidden[:, :-1], [[0, 0], [1, 0]])
        spans = tf.cumsum(tf.cast(begins, tf.int32), axis=1)
        # The targets may end in the sentinel of what follows the last hidden span.
        return hidden & (number + spans + 1 <= targets_length - 1) & (spans + 1 <= sentinels)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        return {"inputs": corpus_features["targets"], "targets": corpus_features["targets"]}

    def converter(self, pack: bool) -> EncoderDecoderConverter:
        return EncoderDecoderConverter(pack)

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        if not self.drop:
            return gaps_to_fill(text, feature)
        end = [feature.vocabulary.eos_id] if feature.add_eos else []
        return super().encode_prompt(text, feature) + end

    def complete(self, inputs: Ids, targets: Ids, vocabulary: seqio.Vocabulary) -> list[int]:
        if self.drop:  # nothing says where the tokens were
            return super().complete(inputs, targets, vocabulary)
        return merge_spans(np.asarray(inputs), np.asarray(targets), vocabulary)[0].tolist()
