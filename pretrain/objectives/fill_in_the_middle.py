"""Fill in the middle: a decoder learns to write what is missing between two pieces of code or text."""

import dataclasses
import itertools
import numbers
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import seqio
import tensorflow as tf

from pretrain.data import vocabulary as vocabularies
from pretrain.data.converters import DecoderConverter
from pretrain.data.seeds import random_bits, uniform
from pretrain.data.vocabulary import Ids
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, check_lengths, check_numbers
from pretrain.objectives.span_corruption import gaps_to_fill

_SPLIT = 4  # tokens that a row leaves free for those that a cut takes apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(Objective):
    """Cuts a chunk at two random characters, and moves the middle to the end.

    The objective of Bavarian et al. 2022 (https://arxiv.org/abs/2207.14255), applied to the pieces of
    documents that fill rows ("context-level", section 4.3), in its two orders (section 3):

        chunk  def f(x): return x           PRE, SUF, MID: the first three sentinels
        PSM    PRE def f( SUF  return x MID x): EOS
        SPM    PRE SUF  return x MID def f(x): EOS

    The rest of the chunks are left as they are, for a model that writes from left to right no worse: there
    EOS stands where a document ends, and nowhere else. Every token is charged for. A cut may fall inside a
    token, which then becomes those of its two parts. Unlike other objectives this one does not join
    documents, unless it is told to.

    Examples: {"targets": int32 [up to lengths["targets"]]}.

    Attributes:
        rate: share of the chunks that are taken apart.
        spm_rate: share of those that are in the order suffix, prefix, middle.
        sentinels: the ids of PRE, SUF and MID; None is the vocabulary's first three sentinels.
    """

    family: ClassVar[Family] = "decoder"
    ends_documents: ClassVar[bool] = True
    shortest_chunk: ClassVar[int] = 2  # a token, where the other is EOS
    join_documents: bool = False
    rate: float = 0.5
    spm_rate: float = 0.5
    sentinels: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, rate="[0, 1]", spm_rate="[0, 1]")
        if self.sentinels is not None and not len(self.sentinels) == len({*self.sentinels}) == 3:
            raise InputError(f"FillInTheMiddle.sentinels must be three ids, not {self.sentinels!r}.")

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        check_lengths(self, lengths, targets=_SPLIT + 6)
        self._marks(vocabulary)

    def _marks(self, vocabulary: seqio.Vocabulary) -> Sequence[int]:
        """The ids of PRE, SUF and MID."""
        size, most = vocabulary.vocab_size, vocabularies.num_sentinels(vocabulary)
        marks = self.sentinels or [size - 1, size - 2, size - 3]
        if self.sentinels is None and most < 3:
            raise InputError(
                f"FillInTheMiddle needs three sentinels, but the vocabulary has {most}: give it "
                "extra_ids=3, or set sentinels."
            )
        if not all(isinstance(mark, numbers.Integral) and 0 <= mark < size for mark in marks):
            raise InputError(
                f"FillInTheMiddle.sentinels {marks} are not all in the vocabulary of {size} ids."
            )
        if special := {vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id} & {*marks}:
            raise InputError(
                f"FillInTheMiddle.sentinels {marks} has {min(special)}, which is padding, EOS or unknown in "
                "the vocabulary: give ids that mean nothing else."
            )
        return marks

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        return lengths["targets"] - 4 - _SPLIT  # three sentinels and EOS

    def examples(
        self, chunks: tf.RaggedTensor, seeds: tf.Tensor, lengths, vocabulary
    ) -> dict[str, tf.RaggedTensor]:
        table, end = Splits.of(vocabulary), vocabulary.eos_id
        ended = tf.reduce_any(chunks[:, -1:] == end, axis=1)
        text = tf.RaggedTensor.from_tensor(
            chunks.to_tensor(), chunks.row_lengths() - tf.cast(ended, tf.int64)
        )
        prefix, middle, suffix = table.cut(text, seeds, lengths["targets"] - 4)
        pre, suf, mid, eos = (tf.fill([chunks.nrows(), 1], id) for id in (*self._marks(vocabulary), end))
        psm = tf.concat([pre, prefix, suf, suffix, mid, middle, eos], axis=1)
        spm = tf.concat([pre, suf, suffix, mid, prefix, middle, eos], axis=1)
        lots = uniform(seeds, 2, draw=1)
        kind = tf.where(lots[:, 0] >= self.rate, 2, tf.where(lots[:, 1] < self.spm_rate, 1, 0))
        count = tf.cast(chunks.nrows(), tf.int32)
        return {"targets": tf.gather(tf.concat([psm, spm, chunks], axis=0), kind * count + tf.range(count))}

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        return {"targets": corpus_features["targets"]}

    def converter(self, pack: bool) -> DecoderConverter:
        return DecoderConverter(pack)

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        """A text with one gap, <extra_id_0>, is to be filled; one without is to be continued.

        In the order suffix, prefix, middle where that was learnt: the middle goes on from the end of the
        prefix, and the authors found that it infills somewhat better.
        """
        if "<extra_id_" not in text:
            return super().encode_prompt(text, feature)
        gap = feature.vocabulary.vocab_size - 1
        ids = [token for token in gaps_to_fill(text, feature) if token != feature.vocabulary.eos_id]
        pre, suf, mid = self._marks(feature.vocabulary)
        first = feature.vocabulary.vocab_size - vocabularies.num_sentinels(feature.vocabulary)
        if [token for token in ids if token >= first or token in (pre, suf, mid)] != [gap]:
            raise InputError(
                f"The prompt {text!r} must have one gap, <extra_id_0>, and no other sentinel or mark."
            )
        at = ids.index(gap)
        if self.spm_rate > 0:
            return [pre, suf, *ids[at + 1 :], mid, *ids[:at]]
        return [pre, *ids[:at], suf, *ids[at + 1 :], mid]

    def complete(self, inputs: Ids, targets: Ids, vocabulary: seqio.Vocabulary) -> list[int]:
        ids, (pre, suf, mid) = super().complete(inputs, targets, vocabulary), self._marks(vocabulary)
        if ids[:1] != [pre] or suf not in ids or mid not in ids:
            return ids
        prefix, rest = ids[1 : ids.index(suf)], ids[ids.index(suf) + 1 :]
        return [*prefix, *rest[rest.index(mid) + 1 :], *rest[: rest.index(mid)]]


@dataclasses.dataclass(frozen=True)
class Splits:
    """How the tokens of a vocabulary fall apart between two characters.

    characters: int32 [vocab_size], how many characters begin in a token.
    first: int32 [vocab_size], the entry of a token cut before its second character; entry 0 is no cut.
    left, right: int32 [entries, (tokens)], the tokens of the two parts.
    """

    characters: tf.Tensor
    first: tf.Tensor
    left: tf.RaggedTensor
    right: tf.RaggedTensor

    @classmethod
    def of(cls, vocabulary: seqio.Vocabulary) -> "Splits":
        characters, first = np.zeros((2, vocabulary.vocab_size), np.int32)
        parts: list[tuple[str, str]] = []
        for token, spelled in enumerate(vocabularies.text_of_ids(vocabulary)):
            characters[token] = 1 if spelled is None else sum((byte & 0xC0) != 0x80 for byte in spelled)
            first[token] = len(parts) + 1
            if spelled is not None and characters[token] > 1:
                text = spelled.decode()
                parts += [(text[:at], text[at:]) for at in range(1, len(text))]
        left, right = (
            _ragged([[], *vocabularies.encode_pieces(texts, vocabulary)])
            for texts in ([one for one, _ in parts], [other for _, other in parts])
        )
        return cls(tf.constant(characters), tf.constant(first), left, right)

    def cut(
        self, tokens: tf.RaggedTensor, seeds: tf.Tensor, most: int
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Prefix, middle and suffix of each sequence, cut at two random places among its characters.

        Where the parts would have more than `most` tokens, the cuts move to the beginning of their tokens.
        """
        lengths = tf.cast(tokens.row_lengths(), tf.int32)[:, tf.newaxis]
        dense = tokens.to_tensor()
        inside = tf.range(tf.shape(dense)[1]) < lengths
        ends = tf.cumsum(tf.where(inside, tf.gather(self.characters, dense), 0), axis=1)
        total = tf.reduce_max(ends, axis=1, keepdims=True)
        places = tf.sort(random_bits(seeds, 2) % (total + 1), axis=1)
        at = tf.minimum(tf.searchsorted(ends, places, side="right"), lengths)
        begins = tf.gather(tf.pad(ends, [[0, 0], [1, 0]]), at, batch_dims=1)
        offset = tf.where(at < lengths, places - begins, 0)
        token = tf.gather(tf.pad(dense, [[0, 0], [0, 1]]), at, batch_dims=1)
        entry = tf.where(offset > 0, tf.gather(self.first, token) + offset - 1, 0)
        # Both cuts in one token: the second one moves to its end.
        same = (at[:, 0] == at[:, 1]) & (entry[:, 0] > 0) & (entry[:, 1] > 0)
        at += tf.stack([tf.zeros_like(same, tf.int32), tf.cast(same, tf.int32)], axis=1)
        entry *= tf.stack([tf.ones_like(same, tf.int32), tf.cast(~same, tf.int32)], axis=1)
        halves = tf.gather(self.left.row_lengths() + self.right.row_lengths(), entry)
        more = tf.reduce_sum(tf.maximum(halves - 1, 0), axis=1)
        fits = tokens.row_lengths() + more <= most
        entry = tf.where(fits[:, tf.newaxis], entry, 0)
        return self._parts(tokens, at, entry)

    def _parts(self, tokens: tf.RaggedTensor, at: tf.Tensor, entry: tf.Tensor):
        """The three parts, cut in (entry > 0) or before (0) the tokens `at`, int32 [n, 2]."""
        split = tf.cast(entry > 0, tf.int32)
        one, two = at[:, 0], at[:, 1]
        rest = tf.cast(tokens.row_lengths(), tf.int32) - two - split[:, 1]
        sizes = tf.stack([one, split[:, 0], two - one - split[:, 0], split[:, 1], rest], axis=1)
        pieces = tf.RaggedTensor.from_row_lengths(
            tokens.flat_values, tf.reshape(tf.cast(sizes, tf.int64), [-1]), validate=False
        )
        before, between, after = (tf.gather(pieces, 5 * tf.range(tf.size(one)) + part) for part in (0, 2, 4))
        left, right = ([tf.gather(of, entry[:, cut]) for cut in (0, 1)] for of in (self.left, self.right))
        return (
            tf.concat([before, left[0]], axis=1),
            tf.concat([right[0], between, left[1]], axis=1),
            tf.concat([right[1], after], axis=1),
        )


def _ragged(rows: Sequence[Sequence[int]]) -> tf.RaggedTensor:
    # Many rows: tf.ragged.constant would take seconds.
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return tf.RaggedTensor.from_row_lengths(flat, np.array([len(row) for row in rows], np.int64))
