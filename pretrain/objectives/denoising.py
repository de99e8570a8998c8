"""Denoising, the objective of BART: a text is damaged in any of several ways, and written anew as it was."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import seqio
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data import vocabulary as vocabularies
from pretrain.data.converters import EncoderDecoderConverter
from pretrain.data.seeds import uniform
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_flags, check_lengths, check_numbers

_DRAWS = 8  # random numbers that a noise may draw; each noise of a list has draws of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(abc.ABC):
    """One way to damage a text; `rate` is a share in [0, 1], of what says the subclass."""

    rate: float

    def __post_init__(self) -> None:
        check_flags(self)
        check_numbers(self, rate="[0, 1]")

    @abc.abstractmethod
    def __call__(
        self, tokens: tf.RaggedTensor, seeds: tf.Tensor, draw: int, vocabulary: seqio.Vocabulary, mask_id: int
    ) -> tf.RaggedTensor:
        """Damages int32 [n, (tokens)] by the draws `draw`, `draw` + 1, ... of the seeds, int64 [n, 2]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OfTokens(Noise):
    """A noise of some of the tokens, or of whole words."""

    rate: float = 0.15
    whole_words: bool = False

    def _chosen(self, tokens: tf.Tensor, lengths: tf.Tensor, seeds: tf.Tensor, draw: int, vocabulary):
        units = tf.broadcast_to(tf.range(tf.shape(tokens)[1]), tf.shape(tokens))
        if self.whole_words:
            units = corruption.words(tf.gather(vocabularies.begins_word(vocabulary), tokens))
        inside = tf.sequence_mask(lengths, tf.shape(tokens)[1])
        return corruption.chosen(units, inside, self.rate, seeds, draw, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking(_OfTokens):
    """Chosen tokens become the mask, one for each; `randomised` is the share that becomes a random token."""

    randomised: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, randomised="[0, 1]")

    def __call__(self, tokens, seeds, draw, vocabulary, mask_id) -> tf.RaggedTensor:
        dense = tokens.to_tensor()
        chosen = self._chosen(dense, tokens.row_lengths(), seeds, draw, vocabulary)
        ids = tf.constant(vocabularies.text_ids(vocabulary, without=mask_id))
        other = corruption.random_tokens(dense, ids, seeds, draw + 2)
        randomised = uniform(seeds, tf.shape(dense)[1], draw + 3) < self.randomised
        dense = tf.where(chosen, tf.where(randomised, other, mask_id), dense)
        return tf.RaggedTensor.from_tensor(dense, tokens.row_lengths())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTokens(_OfTokens):
    """Chosen tokens become random ones."""

    def __call__(self, tokens, seeds, draw, vocabulary, mask_id) -> tf.RaggedTensor:
        masking = Masking(rate=self.rate, whole_words=self.whole_words, randomised=1.0)
        return masking(tokens, seeds, draw, vocabulary, mask_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deletion(_OfTokens):
    """Chosen tokens are left out, and nothing says where."""

    def __call__(self, tokens, seeds, draw, vocabulary, mask_id) -> tf.RaggedTensor:
        chosen = self._chosen(tokens.to_tensor(), tokens.row_lengths(), seeds, draw, vocabulary)
        return corruption.without(tokens, chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infilling(Noise):
    """Spans of a share `rate` of the tokens become one mask each; lengths are Poisson, also 0."""

    rate: float = 0.3
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, mean_span_length="[1, 100]")

    def __call__(self, tokens, seeds, draw, vocabulary, mask_id) -> tf.RaggedTensor:
        lengths = tf.cast(tokens.row_lengths(), tf.int32)
        spans = corruption.infilling_spans(lengths, self.rate, self.mean_span_length, seeds, draw)
        return corruption.masked_spans(tokens, *spans, mask_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OfOrder(Noise):
    """A noise of a share `rate` of the texts, which changes the order of the tokens."""

    rate: float = 1.0

    def __call__(self, tokens, seeds, draw, vocabulary, mask_id) -> tf.RaggedTensor:
        damaged = self._reordered(tokens, seeds, draw + 1, vocabulary).to_tensor()
        wanted = uniform(seeds, 1, draw) < self.rate
        return tf.RaggedTensor.from_tensor(
            tf.where(wanted, damaged, tokens.to_tensor()), tokens.row_lengths()
        )

    @abc.abstractmethod
    def _reordered(self, tokens, seeds, draw, vocabulary) -> tf.RaggedTensor: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePermutation(_OfOrder):
    """Sentences come in random order; see `corruption.sentences` for where one ends."""

    def _reordered(self, tokens, seeds, draw, vocabulary) -> tf.RaggedTensor:
        dense = tokens.to_tensor(default_value=vocabulary.pad_id)
        units = corruption.sentences(dense, vocabularies.Punctuation.of(vocabulary))
        return corruption.reordered(tokens, units, seeds, draw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(_OfOrder):
    """A text begins at a random token, and what was before that comes last."""

    def _reordered(self, tokens, seeds, draw, vocabulary) -> tf.RaggedTensor:
        return corruption.rotated(tokens, seeds, draw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shuffling(_OfOrder):
    """All tokens come in random order: "deshuffling" of https://arxiv.org/abs/1910.10683, section 3.3.1."""

    def _reordered(self, tokens, seeds, draw, vocabulary) -> tf.RaggedTensor:
        units = tf.broadcast_to(tf.range(tf.shape(tokens.to_tensor())[1]), tf.shape(tokens.to_tensor()))
        return corruption.reordered(tokens, units, seeds, draw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """The encoder reads a damaged chunk; the decoder writes the whole of it as it was.

    The objective of Lewis et al. 2019 (https://arxiv.org/abs/1910.13461, section 2.2), whose best noise, the
    default, permutes sentences and then hides spans:

        chunk    A B C . D E .
        inputs   D _ . A _ C . EOS
        targets  A B C . D E . EOS

    With `Masking(randomised=0.1)` it is the BERT-style, with `Masking()` the MASS-style and with
    `Shuffling()` the deshuffling objective of https://arxiv.org/abs/1910.10683, table 3.

    Examples: {"inputs": int32 [up to lengths["inputs"]], "targets": int32 [up to lengths["targets"]]}.

    Attributes:
        noise: what damages a chunk, one after the other.
        mask_id: the id of the mask; None is the first sentinel.
    """

    family: ClassVar[Family] = "encoder_decoder"
    noise: Sequence[Noise] = (SentencePermutation(), Infilling())
    mask_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise or not all(isinstance(each, Noise) for each in self.noise):
            raise InputError(
                f"Denoising.noise is {self.noise!r}; give a list of noises, such as [@denoising.Infilling()]."
            )

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, inputs=3, targets=3)
        vocabularies.mask_id(vocabulary, self.mask_id)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return min(lengths["inputs"], lengths["targets"]) - 1

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        mask_id, damaged = vocabularies.mask_id(vocabulary, self.mask_id), chunks
        for number, noise in enumerate(self.noise):
            damaged = noise(damaged, seeds, _DRAWS * number, vocabulary, mask_id)
        return {"inputs": damaged, "targets": chunks}

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        return {"inputs": corpus_features["targets"], "targets": corpus_features["targets"]}

    def converter(self, pack: bool) -> EncoderDecoderConverter:
        return EncoderDecoderConverter(pack)

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        end = [feature.vocabulary.eos_id] if feature.add_eos else []
        return super().encode_prompt(text, feature) + end

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        return super().complete((), targets, vocabulary)  # the targets are the whole text
