"""Masked language modelling, the objective of BERT."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import seqio
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data import vocabulary as vocabularies
from pretrain.data.converters import EncoderConverter
from pretrain.data.seeds import uniform
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_lengths, check_numbers

Unit = Literal["token", "word"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Hides some tokens of a chunk; an encoder, which sees all the others, says what they were.

    The objective of Devlin et al. 2018 (https://arxiv.org/abs/1810.04805, section 3.1) without its next
    sentence prediction, which https://arxiv.org/abs/1907.11692 found to be of no use. Of the chosen tokens
    most are replaced by the mask, some by a random token and some stay, and all of them are charged for:

        chunk    the  quick brown fox   jumps
        inputs   the  MASK  brown cat   jumps
        targets  the  quick brown fox   jumps
        chosen   0    1     0     1     0

    Which are chosen is drawn anew each time a chunk is read (dynamic masking). Each document is followed by
    EOS, then cut into chunks of lengths["inputs"] tokens; EOS is never chosen.

    Examples: {"inputs", "targets", "chosen": int32 [up to lengths["inputs"]] each}.

    Attributes:
        mask_rate: share of the tokens that is chosen, in (0, 1).
        replaced: share of the chosen tokens that become the mask.
        randomised: share that become a random token of text; the rest stay as they are.
        unit: "token", or "word" to choose whole words.
        max_ngram: the most units that are chosen together; n of them come as often as 1/n says
            (https://arxiv.org/abs/1909.11942, section 4.1).
        mask_id: the id of the mask; None is the first sentinel.
    """

    family: ClassVar[Family] = "encoder"
    ends_documents: ClassVar[bool] = True
    mask_rate: float = 0.15
    replaced: float = 0.8
    randomised: float = 0.1
    unit: Unit = "token"
    max_ngram: int = 1
    mask_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, mask_rate="(0, 1)", replaced="[0, 1]", randomised="[0, 1]")
        check_numbers(self, whole=True, max_ngram="[1, inf)")
        if self.replaced + self.randomised > 1:
            raise InputError(
                f"MaskedLM.replaced={self.replaced} and randomised={self.randomised} share the chosen "
                "tokens: make their sum at most 1."
            )
        if self.unit not in get_args(Unit):
            raise InputError(f"MaskedLM.unit must be one of {get_args(Unit)}, not {self.unit!r}.")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, inputs=2)
        vocabularies.mask_id(vocabulary, self.mask_id)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["inputs"]

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        tokens = chunks.to_tensor(default_value=vocabulary.pad_id)
        inside = tf.sequence_mask(chunks.row_lengths(), tf.shape(tokens)[1])
        chosen = self._chosen(tokens, inside, seeds, vocabulary)
        hidden = self._hidden(tokens, seeds, vocabulary)
        features = {
            "inputs": tf.where(chosen, hidden, tokens),
            "targets": tokens,
            "chosen": tf.cast(chosen, tf.int32),
        }
        return {name: tf.RaggedTensor.from_tensor(x, chunks.row_lengths()) for name, x in features.items()}

    def _chosen(
        self, tokens: tf.Tensor, inside: tf.Tensor, seeds: tf.Tensor, vocabulary: seqio.Vocabulary
    ) -> tf.Tensor:
        units = tf.broadcast_to(tf.range(tf.shape(tokens)[1]), tf.shape(tokens))
        if self.unit == "word":
            units = corruption.words(tf.gather(vocabularies.begins_word(vocabulary), tokens))
        if self.max_ngram > 1:
            units = corruption.ngrams(units, self.max_ngram, seeds, draw=2)
        eligible = inside & (tokens != vocabulary.eos_id)
        return corruption.chosen(units, eligible, self.mask_rate, seeds, draw=0)

    def _hidden(self, tokens: tf.Tensor, seeds: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
        """What each token is if it is chosen."""
        lot = uniform(seeds, tf.shape(tokens)[1], draw=3)
        mask_id = vocabularies.mask_id(vocabulary, self.mask_id)
        ids = tf.constant(vocabularies.text_ids(vocabulary, without=mask_id))
        other = corruption.random_tokens(tokens, ids, seeds, draw=4)
        hidden = tf.where(lot < self.replaced + self.randomised, other, tokens)
        return tf.where(lot < self.replaced, mask_id, hidden)

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        tokens = corpus_features["targets"]
        marks = seqio.Feature(seqio.PassThroughVocabulary(size=2), add_eos=False)
        return {"inputs": tokens, "targets": tokens, "chosen": marks}

    def converter(self, pack: bool) -> EncoderConverter:
        return EncoderConverter(pack)

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        return super().complete((), targets, vocabulary)  # the targets are the whole text
