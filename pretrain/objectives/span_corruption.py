"""Span corruption, the objective of T5."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from pretrain.data import noise
from pretrain.data import vocabulary as vocabularies
from pretrain.data.converters import EncoderDecoderConverter, PrefixDecoderConverter
from pretrain.data.vocabulary import Ids, num_sentinels
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_family, check_lengths, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Objective):
    """Hides random spans of a chunk behind sentinels; the decoder says what was behind each.

    The objective of Raffel et al. 2020 (https://arxiv.org/abs/1910.10683, section 3.1.4), token for token:

        chunk    Thank you for inviting me to your party last week .
        inputs   Thank you <S0> me to your party <S1> week . EOS
        targets  <S0> for inviting <S1> last EOS

    Sentinels are the last ids of the vocabulary, <S0> = vocab_size - 1 and downwards; there are
    `vocabulary.extra_ids` of them. A chunk has as many tokens as fill lengths["inputs"] once corrupted.
    As in T5, a chunk ends in noise, so one too short for two spans always hides its end. Unlike T5's
    pipeline, this one reads every token of a document and not a random 65,536 of them, and refuses
    settings that would run over the sentinels into real vocabulary.

    family="decoder": inputs, without EOS, and targets share one row of lengths["targets"], the inputs read in
    both directions as in `PrefixDecoderConverter`.

    Examples: {"inputs": int32 [up to lengths["inputs"]], "targets": int32 [up to lengths["targets"]]}.

    Attributes:
        family: the kind of model to train, "encoder_decoder" or "decoder".
        noise_density: fraction of a chunk's tokens that is hidden, in (0, 1).
        mean_span_length: mean tokens in a hidden span, at least 1.
        most_spans: chunks are as much shorter as their spans, at most so many, and their targets need to
            fit; None refuses settings with which full chunks do not.
    """

    family: Family = "encoder_decoder"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    most_spans: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self)
        density, mean = self.noise_density, self.mean_span_length
        check_numbers(self, noise_density="(0, 1)", mean_span_length="[1, inf)")
        if self.most_spans is not None:
            check_numbers(self, whole=True, most_spans="[1, inf)")
        if density / mean > 1 - density:
            raise InputError(
                f"SpanCorruption.noise_density={density} in spans of {mean} tokens makes more spans than it "
                f"leaves tokens between them: use mean_span_length >= {_ceil(density / (1 - density), 2):g}."
            )

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        if self.family == "decoder":
            tokens = lengths["targets"]
            while sum(self.corrupted_lengths(tokens)) - 1 > lengths["targets"]:
                tokens -= 1
        else:
            tokens = self.tokens_length(lengths["inputs"])
        if self.most_spans is not None:
            while self._counts(tokens)[1] > self.most_spans or self._too_long(tokens, lengths["targets"]):
                tokens -= 1
        return tokens

    def _too_long(self, tokens: int, targets_length: int) -> bool:
        return self.family == "encoder_decoder" and self.corrupted_lengths(tokens)[1] > targets_length

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        sizes = tf.cast(chunks.row_lengths(), tf.int32)
        spans = noise.random_spans(sizes, self.noise_density, self.mean_span_length, seeds)
        inputs, targets = noise.spans_to_sentinels(chunks, *spans, vocabulary.vocab_size)
        return {"inputs": inputs, "targets": targets}

    def tokens_length(self, inputs_length: int) -> int:
        """Tokens in a full chunk: as many as fill `inputs_length` once corrupted.

        >>> SpanCorruption().tokens_length(512)
        568
        """
        # T5's own number, but where that rounds otherwise than `noise_counts`, one more than the inputs hold.
        tokens, _ = noise.span_lengths(inputs_length, self.noise_density, self.mean_span_length)
        while self.corrupted_lengths(tokens)[0] > inputs_length:
            tokens -= 1
        return tokens

    def corrupted_lengths(self, tokens_length: int) -> tuple[int, int]:
        """(inputs length, targets length) of a chunk of so many tokens, at least 2, each with its EOS.

        >>> SpanCorruption().corrupted_lengths(568)
        (512, 114)
        """
        hidden, spans = self._counts(tokens_length)
        return tokens_length - hidden + spans + 1, hidden + spans + 1

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        if self.family == "decoder":
            check_lengths(self, lengths, targets=6)
            self._check_spans(lengths, num_sentinels(vocabulary))
            return
        check_lengths(self, lengths, inputs=3, targets=3)
        if self.most_spans is not None:
            self._check_spans(lengths, num_sentinels(vocabulary))
            return
        inputs, sentinels = lengths["inputs"], num_sentinels(vocabulary)
        tokens = self.tokens_length(inputs)
        _, targets = self.corrupted_lengths(tokens)
        if targets > lengths["targets"]:
            raise InputError(
                f"lengths['targets'] is {lengths['targets']}, but the {tokens} tokens that SpanCorruption "
                f"fits into {inputs} inputs have {targets} targets: set it to {targets}."
            )
        spans = self._spans(inputs)
        if not sentinels:
            raise InputError(
                f"SpanCorruption needs a sentinel for each of the {spans} spans in a chunk, "
                f"but the vocabulary has none: give it extra_ids={spans}."
            )
        if spans > sentinels:
            most, least = self._most_inputs(inputs, sentinels), self._least_mean(inputs, sentinels)
            raise InputError(
                f"SpanCorruption hides {spans} spans in the {tokens} tokens of a chunk, but the vocabulary "
                f"has {sentinels} sentinels: use lengths['inputs'] <= {most}, mean_span_length >= {least:g}, "
                f"or extra_ids={spans}."
            )

    def _check_spans(self, lengths: Mapping[str, int], sentinels: int) -> None:
        spans = self._counts(self.chunk_length(lengths))[1]
        if spans > sentinels:
            raise InputError(
                f"SpanCorruption hides up to {spans} spans in a chunk, but the vocabulary has {sentinels} "
                f"sentinels: use most_spans={sentinels}, or extra_ids={spans}."
            )

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        targets = corpus_features["targets"]
        ends = targets.add_eos and self.family == "encoder_decoder"
        return {"inputs": dataclasses.replace(targets, add_eos=ends), "targets": targets}

    def converter(self, pack: bool) -> EncoderDecoderConverter | PrefixDecoderConverter:
        return PrefixDecoderConverter(pack) if self.family == "decoder" else EncoderDecoderConverter(pack)

    @property
    def bidirectional_prompt(self) -> bool:
        return self.family == "decoder"

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        ids = gaps_to_fill(text, feature)
        return ids[:-1] if feature.add_eos and self.family == "decoder" else ids

    def complete(self, inputs: Ids, targets: Ids, vocabulary: seqio.Vocabulary) -> list[int]:
        return merge_spans(np.asarray(inputs), np.asarray(targets), vocabulary)[0].tolist()

    def _counts(self, tokens_length: int) -> tuple[int, int]:
        hidden, spans = noise.noise_counts(tokens_length, self.noise_density, self.mean_span_length)
        return int(hidden), int(spans)

    def _spans(self, inputs_length: int) -> int:
        """Spans in a full chunk."""
        return self._counts(self.tokens_length(inputs_length))[1]

    def _most_inputs(self, inputs_length: int, sentinels: int) -> int:
        """The longest inputs, shorter than these, whose chunks make do with so many sentinels."""
        tokens = tf.range(2, self.tokens_length(inputs_length))
        _, spans = noise.noise_counts(tokens, self.noise_density, self.mean_span_length)
        most, _ = self.corrupted_lengths(int(tf.boolean_mask(tokens, spans <= sentinels)[-1]))
        # At density 0.5 T5 takes a token less, and somewhat longer inputs may do.
        while self._spans(most + 1) <= sentinels:
            most += 1
        return most

    def _least_mean(self, inputs_length: int, sentinels: int) -> float:
        """The shortest mean span, in tenths, whose chunks make do with so many sentinels."""
        hidden, _ = self._counts(self.tokens_length(inputs_length))
        mean = _ceil(max(self.mean_span_length, hidden / (sentinels + 1)), 1)
        while dataclasses.replace(self, mean_span_length=mean)._spans(inputs_length) > sentinels:
            mean = round(mean + 0.1, 1)
        return mean


def gaps_to_fill(text: str, feature: seqio.Feature) -> list[int]:
    """Token ids of a prompt whose gaps are sentinels, and EOS. Raises InputError where it has no gap."""
    if "<extra_id_" not in text:
        raise InputError(
            f"The prompt {text!r} has no gap to fill: mark gaps with <extra_id_0>, <extra_id_1>, ..."
        )
    end = [feature.vocabulary.eos_id] if feature.add_eos else []
    return vocabularies.parse(text, feature.vocabulary) + end


def _ceil(value: float, digits: int) -> float:
    return math.ceil(value * 10**digits) / 10**digits


def merge_spans(
    inputs: np.ndarray, targets: np.ndarray, vocabulary: seqio.Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the sentinels of `inputs` with the spans that follow them in `targets`: undoes span corruption.

    What a model predicts may be merged too: a sentinel that the targets do not name becomes an empty span,
    one they name twice takes its first span, and what they say before any sentinel is left out.

    Args:
        inputs: integers [n], without padding; one EOS at the very end is left out.
        targets: integers [m], likewise.
        vocabulary: of both.

    Returns:
        (tokens, is_noise): int32 and bool, [length of the text].

    >>> tokens, is_noise = merge_spans(
    ...     [9, 358, 7, 357, 1], [358, 4, 5, 357, 6, 1], seqio.ByteVocabulary(extra_ids=100))
    >>> tokens.tolist(), is_noise.astype(int).tolist()
    ([9, 4, 5, 7, 6], [0, 1, 1, 0, 1])
    """
    first_sentinel = vocabulary.vocab_size - num_sentinels(vocabulary)

    def pieces(tokens: np.ndarray) -> list[np.ndarray]:
        """The piece before any sentinel, then one piece a sentinel, beginning with it."""
        tokens = np.asarray(tokens, np.int32)
        if len(tokens) and tokens[-1] == vocabulary.eos_id:
            tokens = tokens[:-1]
        return np.split(tokens, np.flatnonzero(tokens >= first_sentinel))

    spans = {piece[0]: piece[1:] for piece in reversed(pieces(targets)[1:])}
    nothing = np.zeros(0, np.int32)
    head, *rest = pieces(inputs)
    parts = [head]
    for piece in rest:
        parts += [spans.get(piece[0], nothing), piece[1:]]
    is_noise = [np.full(len(part), index % 2 == 1) for index, part in enumerate(parts)]
    return np.concatenate(parts), np.concatenate(is_noise)
