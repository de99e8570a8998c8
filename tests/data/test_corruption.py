"""Which tokens are chosen: exact counts, whole units, the rates they come at."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain.data import corruption
from pretrain.data.vocabulary import Punctuation

N, M = 400, 60


@pytest.fixture
def seeds():
    return tf.constant(np.random.RandomState(0).randint(0, 2**62, (N, 2)), tf.int64)


@pytest.fixture
def eligible():
    """Sequences of 1 to 60 tokens, of which every seventh must not be chosen."""
    places = np.arange(M)
    return (places < 1 + np.arange(N)[:, None] % M) & (places % 7 != 3)


def each_its_own():
    return tf.broadcast_to(tf.range(M), [N, M])


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_of_tokens_the_exact_share_is_chosen(rate, seeds, eligible):
    chosen = corruption.chosen(each_its_own(), tf.constant(eligible), rate, seeds, draw=0).numpy()
    assert not (chosen & ~eligible).any()
    number = eligible.sum(1)
    np.testing.assert_array_equal(chosen.sum(1), np.maximum(np.round(number * rate), 1))


def test_every_token_is_chosen_equally_often(seeds):
    every = tf.ones([N, M], tf.bool)
    chosen = corruption.chosen(each_its_own(), every, 0.15, seeds, draw=0).numpy()
    assert abs(chosen.mean(0) - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / N)
    together = (chosen[:, :-1] & chosen[:, 1:]).mean()
    assert abs(together - 9 * 8 / (60 * 59)) < 5 * np.sqrt(0.02 / (N * M))


def test_units_are_chosen_whole_and_their_tokens_add_up_to_the_share(seeds):
    sizes = np.random.RandomState(1).randint(1, 8, (N, M))
    units = np.stack([np.repeat(np.arange(M), row)[:M] for row in sizes]).astype(np.int32)
    chosen = corruption.chosen(tf.constant(units), tf.ones([N, M], tf.bool), 0.3, seeds, draw=0).numpy()
    for row, own in zip(chosen, units, strict=True):
        assert all(len(set(row[own == unit])) == 1 for unit in set(own))
    counts = chosen.sum(1)
    assert abs(counts.mean() - 18) < 5 * counts.std() / np.sqrt(N), (counts.mean(), counts.std())
    assert counts.min() > 18 - 7 and counts.max() < 18 + 7


def test_one_unit_at_least_is_chosen(seeds):
    units = tf.zeros([N, M], tf.int32)
    assert corruption.chosen(units, tf.ones([N, M], tf.bool), 0.01, seeds, draw=0).numpy().all()


def test_words_begin_where_the_table_says():
    begins = tf.constant([[True, False, True, True], [False, False, False, True]])
    assert corruption.words(begins).numpy().tolist() == [[0, 0, 1, 2], [0, 0, 0, 1]]


def test_ngrams_join_words_in_order_by_alberts_rule(seeds):
    words = np.broadcast_to(np.arange(M) // 2, (N, M)).astype(np.int32)
    groups = corruption.ngrams(tf.constant(words), 3, seeds, draw=0).numpy()
    assert (groups[:, ::2] == groups[:, 1::2]).all(), "a word is in one group"
    assert set(np.unique(np.diff(groups, axis=1))) <= {0, 1} and (groups[:, 0] == 0).all()
    sizes = np.concatenate([np.bincount(row[::2])[:-1] for row in groups])
    shares = np.bincount(sizes, minlength=4)[1:] / len(sizes)
    np.testing.assert_allclose(shares, np.array([6, 3, 2]) / 11, atol=5 * np.sqrt(0.25 / len(sizes)))


def test_random_tokens_are_all_equally_likely(seeds):
    ids = tf.constant([5, 7, 11, 13], tf.int32)
    found = corruption.random_tokens(tf.zeros([N, M]), ids, seeds, draw=0).numpy()
    counts = np.array([(found == i).sum() for i in ids.numpy()])
    assert counts.sum() == N * M
    assert abs(counts / (N * M) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / (N * M))


SIZES = 1 + np.arange(N) % M


@pytest.fixture
def tokens():
    """Sequences of 1 to 60 different tokens."""
    return tf.ragged.constant([list(range(3, 3 + size)) for size in SIZES], ragged_rank=1)


def test_infilled_spans_hide_the_share_and_their_lengths_are_poisson(seeds):
    lengths = tf.fill([N], 1000)
    before, sizes, spans = (x.numpy() for x in corruption.infilling_spans(lengths, 0.3, 3.0, seeds, draw=0))
    np.testing.assert_array_equal(sizes.sum(1), 300)
    uncut = [row[: number - 1] for row, number in zip(sizes, spans, strict=True)]
    real = np.concatenate(uncut)
    counts = np.bincount(real, minlength=12)[:12] / len(real)
    expected = [np.exp(-3) * 3**k / np.prod(np.arange(1.0, k + 1)) for k in range(12)]
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(0.25 / len(real)))
    for row, number in zip(before, spans, strict=True):
        assert (row[1:number] > 0).all(), "two spans touch"
        assert not row[number:].any() and row.sum() <= 700
    starts = np.array([row[0] for row in before])
    assert starts.min() == 0 and abs(starts.mean() - 700 / 102) < 1.5, "a gap of 701 each is equally likely"


@pytest.mark.parametrize(("rate", "mean"), [(0.3, 3.0), (0.9, 1.0), (0.5, 10.0), (0.05, 1.0)])
def test_infilled_sequences_keep_what_is_not_hidden_in_order(rate, mean, seeds, tokens):
    lengths = tf.cast(tokens.row_lengths(), tf.int32)
    spans = corruption.infilling_spans(lengths, rate, mean, seeds, draw=0)
    found = corruption.masked_spans(tokens, *spans, mask_id=99).to_list()
    for row, size, number in zip(found, SIZES, spans[2].numpy(), strict=True):
        assert row.count(99) == number and len(row) <= size
        kept = [token for token in row if token != 99]
        assert kept == sorted(kept)
        assert len(kept) == size - np.round(np.float32(size) * np.float32(rate))
    assert sum(map(len, found)) < SIZES.sum()


def test_what_is_chosen_is_left_out(tokens):
    chosen = tf.constant(np.random.RandomState(2).rand(N, M) < 0.3)
    found = corruption.without(tokens, chosen).to_list()
    for row, size, out in zip(found, SIZES, chosen.numpy(), strict=True):
        assert row == [3 + place for place in range(size) if not out[place]]


def test_units_come_in_any_order_and_whole(seeds):
    rows = tf.ragged.constant([[1, 1, 2, 3, 3, 3]] * N)
    units = tf.constant([[0, 0, 1, 2, 2, 2]] * N)
    found = [tuple(row) for row in corruption.reordered(rows, units, seeds, draw=0).to_list()]
    parts = {1: (1, 1), 2: (2,), 3: (3, 3, 3)}
    orders = [tuple(dict.fromkeys(row)) for row in found]
    for row, order in zip(found, orders, strict=True):
        assert row == tuple(itertools.chain.from_iterable(parts[unit] for unit in order))
    shares = [orders.count(order) / N for order in set(orders)]
    assert len(shares) == 6 and max(abs(np.array(shares) - 1 / 6)) < 5 * np.sqrt(1 / 6 / N)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One is here. ", "Two? ", "Three!"],
        ["Version 3.14 of a.b.c. ", "Next"],
        ["a line\n\n  \n  ", "indented"],
        ["\n\n. Begins with nothing. ", "Goes on... ... ", "Ends? "],
        [" . \n"],
    ],
)
def test_sentences_have_words_and_end_where_people_would_say(sentences):
    vocabulary = seqio.ByteVocabulary()
    rows = ["".join(sentences), "x"]
    tokens = tf.ragged.constant([vocabulary.encode(row) for row in rows], tf.int32).to_tensor()
    units = corruption.sentences(tokens, Punctuation.of(vocabulary)).numpy()
    expected = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    np.testing.assert_array_equal(units[0, : len(expected)], expected)
    assert not units[1].any()


def test_every_rotation_is_equally_likely(seeds):
    rows = tf.ragged.constant([[4, 5, 6, 7], [8]] * (N // 2))
    found = corruption.rotated(rows, seeds, draw=0).to_list()
    assert all(row == [8] for row in found[1::2])
    firsts = [row[0] for row in found[::2]]
    for row, first in zip(found[::2], firsts, strict=True):
        assert row == [4 + (first - 4 + k) % 4 for k in range(4)]
    shares = np.bincount(firsts)[4:] / len(firsts)
    assert len(shares) == 4 and abs(shares - 0.25).max() < 5 * np.sqrt(0.19 / len(firsts))
