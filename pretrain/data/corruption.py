"""Which tokens of many sequences are chosen, and what is put in their place: pure TensorFlow functions.

Shapes: n sequences, m tokens in the longest; what is beyond the end of a sequence is never chosen. Random
numbers come from `data.seeds`: int64 [n, 2], and a number for each draw.

Example, a vocabulary whose pieces begin a word with a space:

    tokens    _the  _qu  ick  _fox
    units     0     1    1    2         words
    chosen    no    yes  yes  no        chosen
"""

import math

import tensorflow as tf

from pretrain.data.seeds import random_bits, uniform
from pretrain.data.vocabulary import Punctuation


def words(begins: tf.Tensor) -> tf.Tensor:
    """The number of the word each token is in.

    Args:
        begins: bool [n, m], whether a word begins at the token; the first token always begins one.

    >>> words(tf.constant([[False, True, False, True]])).numpy().tolist()
    [[0, 1, 1, 2]]
    """
    count = tf.cumsum(tf.cast(begins, tf.int32), axis=1)
    return count - count[:, :1]


def ngrams(words: tf.Tensor, most: int, seeds: tf.Tensor, draw: int) -> tf.Tensor:
    """Joins words, in order, to groups of 1 to `most`; a size k comes as often as 1/k says (ALBERT's rule).

    The rule is https://arxiv.org/abs/1909.11942, section 4.1.

    Returns:
        int32 [n, m], the number of the group each token is in.
    """
    shares = [1 / size for size in range(1, most + 1)]
    edges = tf.constant([sum(shares[:size]) / sum(shares) for size in range(1, most)], tf.float32)
    draws = uniform(seeds, tf.shape(words)[1], draw)
    sizes = 1 + tf.reduce_sum(tf.cast(draws[:, :, tf.newaxis] >= edges, tf.int32), axis=2)
    return tf.searchsorted(tf.cumsum(sizes, axis=1), words, side="right")


def chosen(
    units: tf.Tensor, eligible: tf.Tensor, rate: float | tf.Tensor, seeds: tf.Tensor, draw: int,
    least: int = 1,
) -> tf.Tensor:  # fmt: skip
    """Chooses whole units at random until a share of the tokens is reached.

    The unit that crosses the share is taken as often as makes the mean number of tokens right; but the first
    one always, where `least` is 1. Where every token is a unit, the number is exact: the share of the
    eligible tokens, rounded.

    Args:
        units: int32 [n, m], the number of the unit each token is in, from 0 to m - 1, in order.
        eligible: bool [n, m], the tokens that may be chosen.
        rate: the share of them, in [0, 1].
        least: 1 chooses a unit at least; 0 may choose none of a short sequence.

    Returns:
        bool [n, m].
    """
    count, most = tf.unstack(tf.shape(units))
    sizes = _sums(tf.cast(eligible, tf.int32), units)
    number = tf.reduce_sum(sizes, axis=1, keepdims=True)
    share = tf.cast(tf.round(tf.cast(number, tf.float32) * rate), tf.int32)
    share = tf.clip_by_value(share, tf.minimum(number, least), number)
    # In random order, those with nothing to choose last; a number of its own tells equal draws apart.
    lots = tf.cast(random_bits(seeds, most, draw), tf.int64) * tf.cast(most, tf.int64)
    lots += tf.cast(tf.range(most), tf.int64)
    order = tf.argsort(tf.where(sizes > 0, lots, tf.int64.max), axis=1)
    in_order = tf.gather(sizes, order, batch_dims=1)
    after = tf.cumsum(in_order, axis=1)
    room = share - (after - in_order)
    coin = uniform(seeds, 1, draw + 1) * tf.cast(in_order, tf.float32)
    fits = (in_order <= room) | (coin < tf.cast(room, tf.float32)) | (tf.range(most) < least)
    taken = (in_order > 0) & (room > 0) & fits
    rows = tf.broadcast_to(tf.range(count)[:, tf.newaxis], [count, most])
    by_unit = tf.scatter_nd(tf.stack([rows, order], axis=2), tf.cast(taken, tf.int32), [count, most])
    return (tf.gather(by_unit, units, batch_dims=1) > 0) & eligible


def ranks(chosen: tf.Tensor, seeds: tf.Tensor, draw: int) -> tf.Tensor:
    """The place of each chosen token in a random order of them, 0, 1, 2, ...; -1 for the others.

    All orders are equally likely. chosen: bool [n, m]; so is the result, in int32.

    >>> found = ranks(tf.constant([[True, False, True]]), tf.constant([[1, 2]], tf.int64), draw=0)
    >>> sorted(found.numpy()[0].tolist())
    [-1, 0, 1]
    """
    most = tf.shape(chosen)[1]
    lots = tf.cast(random_bits(seeds, most, draw), tf.int64) * tf.cast(most, tf.int64)
    lots += tf.cast(tf.range(most), tf.int64)  # tells equal draws apart
    places = tf.argsort(tf.argsort(tf.where(chosen, lots, tf.int64.max), axis=1), axis=1)
    return tf.where(chosen, places, -1)


def _sums(values: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
    """int32 [n, m], the sum of the values in each unit."""
    count, most = tf.unstack(tf.shape(units))
    flat = units + most * tf.range(count)[:, tf.newaxis]
    sums = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(flat, [-1]), count * most)
    return tf.reshape(sums, [count, most])


def random_tokens(like: tf.Tensor, ids: tf.Tensor, seeds: tf.Tensor, draw: int) -> tf.Tensor:
    """One of `ids`, int32 [k], in each place of `like` [n, m]; all are equally likely."""
    draws = uniform(seeds, tf.shape(like)[1], draw)
    return tf.gather(ids, tf.cast(draws * tf.cast(tf.size(ids), tf.float32), tf.int32))


def without(tokens: tf.RaggedTensor, chosen: tf.Tensor) -> tf.RaggedTensor:
    """The tokens that are not chosen, int32 [n, (length)].

    >>> without(tf.ragged.constant([[4, 5, 6], [7]]), tf.constant([[0, 1, 0], [0, 0, 0]]) > 0).to_list()
    [[4, 6], [7]]
    """
    inside = tf.sequence_mask(tokens.row_lengths(), tf.shape(chosen)[1])
    return tf.ragged.boolean_mask(tokens.to_tensor(), inside & ~chosen)


def infilling_spans(
    lengths: tf.Tensor, rate: float, mean_span_length: float, seeds: tf.Tensor, draw: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Spans to hide, their lengths drawn from a Poisson distribution, also empty ones; none touches another.

    As many as hide a share of the tokens, the last one cut to that. There are never more spans than hidden
    tokens, so that a sequence in which each becomes one mask is no longer than before, nor more than gaps
    between the others: the last one that there may be hides all the rest.

    Args:
        lengths: int32 [n], tokens in each sequence.
        rate: share of the tokens to hide, in (0, 1).
        mean_span_length: the mean of the distribution.

    Returns:
        (tokens before each span, tokens in it, spans), int32 [n, most], [n, most] and [n]; beyond the spans
        zeros.
    """
    hidden = tf.cast(tf.round(tf.cast(lengths, tf.float32) * rate), tf.int32)
    most = tf.maximum(tf.reduce_max(hidden), 1)
    drawn = _poisson(uniform(seeds, most, draw), mean_span_length)
    left = lengths - hidden
    allowed = tf.minimum(hidden, left + 1)[:, tf.newaxis]
    after = tf.minimum(tf.cumsum(drawn, axis=1), hidden[:, tf.newaxis])
    after = tf.where(tf.range(most) < allowed - 1, after, hidden[:, tf.newaxis])
    before = tf.pad(after[:, :-1], [[0, 0], [1, 0]])
    real = before < hidden[:, tf.newaxis]
    sizes, spans = after - before, tf.reduce_sum(tf.cast(real, tf.int32), axis=1)
    # Each span goes into a gap of its own between the tokens that are left, or before or after all of them.
    gaps = tf.reduce_max(left) + 1
    lots = tf.cast(random_bits(seeds, gaps, draw + 1), tf.int64) * tf.cast(gaps, tf.int64)
    lots += tf.cast(tf.range(gaps), tf.int64)
    lots = tf.where(tf.range(gaps) <= left[:, tf.newaxis], lots, tf.int64.max)
    rank = tf.argsort(tf.argsort(lots, axis=1), axis=1)
    taken = tf.ragged.boolean_mask(
        tf.broadcast_to(tf.range(gaps), tf.shape(rank)), rank < spans[:, tf.newaxis]
    )
    places = taken.to_tensor(shape=[None, None])
    places = tf.pad(places, [[0, 0], [0, most - tf.shape(places)[1]]])
    first = tf.where(real, places - tf.pad(places[:, :-1], [[0, 0], [1, 0]]), 0)
    return first, sizes, spans


def _poisson(draws: tf.Tensor, mean: float) -> tf.Tensor:
    """Numbers of a Poisson distribution, int32, of draws that are uniform in [0, 1)."""
    shares, total = [math.exp(-mean)], math.exp(-mean)
    while total < 1 - 1e-7 and len(shares) < 1000:
        shares.append(shares[-1] * mean / len(shares))
        total += shares[-1]
    edges = tf.cumsum(tf.constant(shares[:-1], tf.float32))
    return tf.reshape(tf.searchsorted(edges, tf.reshape(draws, [-1]), side="right"), tf.shape(draws))


def masked_spans(
    tokens: tf.RaggedTensor, before: tf.Tensor, sizes: tf.Tensor, spans: tf.Tensor, mask_id: int
) -> tf.RaggedTensor:
    """Each span becomes one mask, an empty one too; int32 [n, (length - hidden + spans)].

    >>> tokens = tf.ragged.constant([[4, 5, 6, 7, 8]])
    >>> before, sizes, spans = tf.constant([[1, 1]]), tf.constant([[2, 0]]), tf.constant([2])
    >>> masked_spans(tokens, before, sizes, spans, mask_id=99).to_list()
    [[4, 99, 7, 99, 8]]
    """
    count, most = tf.unstack(tf.shape(before))
    rest = tf.cast(tokens.row_lengths(), tf.int32) - tf.reduce_sum(before + sizes, axis=1)
    cuts = tf.concat([tf.reshape(tf.stack([before, sizes], 2), [count, -1]), rest[:, tf.newaxis]], axis=1)
    flat = tf.concat([tokens.flat_values, [mask_id]], axis=0)
    pieces = tf.RaggedTensor.from_row_lengths(
        flat, tf.concat([tf.reshape(cuts, [-1]), [1, 0]], 0), validate=False
    )
    width = 2 * most + 1
    mask = count * width
    first = width * tf.range(count)[:, tf.newaxis] + 2 * tf.range(most + 1)
    marks = tf.where(tf.range(most) < spans[:, tf.newaxis], mask, mask + 1)
    marks = tf.pad(marks, [[0, 0], [0, 1]], constant_values=mask + 1)
    found = tf.gather(pieces, tf.reshape(tf.stack([first, marks], 2), [-1]))
    return tf.RaggedTensor.from_row_splits(
        found.flat_values, found.row_splits[:: 2 * (most + 1)], validate=False
    )


def sentences(tokens: tf.Tensor, punctuation: Punctuation) -> tf.Tensor:
    """The number of the sentence that each token is in, int32 [n, m], from 0.

    One ends at a newline, or at a mark that white space or nothing follows. What has no words, such as an
    empty line, belongs to the sentence before.

    Args:
        tokens: int32 [n, m], padded with what is no text.

    >>> import seqio
    >>> vocabulary = seqio.ByteVocabulary()
    >>> tokens = tf.constant([vocabulary.encode("1.5? No.  ... Go")])
    >>> "".join(map(str, sentences(tokens, Punctuation.of(vocabulary)).numpy()[0]))
    '0000011111111122'
    """
    marks, lines, spaced, words = (tf.gather(table, tokens) for table in punctuation.tables())
    followed = tf.pad(spaced[:, 1:], [[0, 0], [0, 1]], constant_values=True)
    before = tf.cumsum(tf.cast(lines | (marks & followed), tf.int32), axis=1, exclusive=True)
    # At each token, the ends before the last word there was; before the first word, those before it.
    of_words = tf.pad(tf.ragged.boolean_mask(before, words).to_tensor(), [[0, 0], [0, 1]])
    number = tf.cumsum(tf.cast(words, tf.int32), axis=1)
    at = tf.gather(of_words, tf.maximum(number - 1, 0), batch_dims=1)
    changes = tf.pad(at[:, 1:] != at[:, :-1], [[0, 0], [1, 0]])
    return tf.cumsum(tf.cast(changes, tf.int32), axis=1)


def reordered(tokens: tf.RaggedTensor, units: tf.Tensor, seeds: tf.Tensor, draw: int) -> tf.RaggedTensor:
    """The units of each sequence in random order, the tokens of a unit in theirs.

    Args:
        units: int32 [n, m], the number of the unit each token is in, from 0 to m - 1, in order.
    """
    most = tf.shape(units)[1]
    long = tf.cast(most, tf.int64)
    lots = tf.cast(random_bits(seeds, most, draw), tf.int64) * long + tf.cast(tf.range(most), tf.int64)
    places = tf.argsort(tf.argsort(lots, axis=1), axis=1)
    keys = tf.gather(tf.cast(places, tf.int64), units, batch_dims=1) * long + tf.range(long)
    return _gathered(tokens, keys)


def rotated(tokens: tf.RaggedTensor, seeds: tf.Tensor, draw: int) -> tf.RaggedTensor:
    """Each sequence begins at a random one of its tokens, and what was before that comes last."""
    lengths = tf.cast(tokens.row_lengths(), tf.int32)
    start = tf.cast(uniform(seeds, 1, draw) * tf.cast(lengths[:, tf.newaxis], tf.float32), tf.int32)
    places = tf.range(tf.reduce_max(lengths))
    keys = tf.where(places < start, places + lengths[:, tf.newaxis], places)
    return _gathered(tokens, tf.cast(keys, tf.int64))


def _gathered(tokens: tf.RaggedTensor, keys: tf.Tensor) -> tf.RaggedTensor:
    """The tokens of each sequence in the order of their keys, int64 [n, m]."""
    inside = tf.sequence_mask(tokens.row_lengths(), tf.shape(keys)[1])
    order = tf.argsort(tf.where(inside, keys, tf.int64.max), axis=1)
    return tf.RaggedTensor.from_tensor(
        tf.gather(tokens.to_tensor(), order, batch_dims=1), tokens.row_lengths()
    )


def unique_sentinels(
    tokens: tf.RaggedTensor, hidden: tf.Tensor, vocab_size: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Hidden spans become sentinels in the inputs, and those that are not become sentinels in the targets.

    As `noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel` of `t5`, for any mask.

    >>> inputs, targets = unique_sentinels(
    ...     tf.ragged.constant([[4, 5, 6, 7]]), tf.constant([[False, True, True, False]]), vocab_size=100)
    >>> inputs.to_list(), targets.to_list()
    ([[4, 99, 7]], [[99, 5, 6, 98]])
    """
    inside = tf.sequence_mask(tokens.row_lengths(), tf.shape(hidden)[1])

    def marked(spans: tf.Tensor) -> tf.RaggedTensor:
        follows = tf.pad(spans[:, :-1], [[0, 0], [1, 0]])
        begins = spans & ~follows
        sentinels = vocab_size - tf.cumsum(tf.cast(begins, tf.int32), axis=1)
        return tf.ragged.boolean_mask(
            tf.where(begins, sentinels, tokens.to_tensor()), inside & ~(spans & follows)
        )

    return marked(hidden), marked(~hidden)


def cropped(
    tokens: tf.RaggedTensor, least: float, most: float, seeds: tf.Tensor, draw: int
) -> tf.RaggedTensor:
    """A random stretch of each sequence, of a share that is uniform in [least, most]; at least one token."""
    lengths = tf.cast(tokens.row_lengths(), tf.float32)
    lots = uniform(seeds, 2, draw)
    sizes = tf.maximum(tf.round(lengths * (least + (most - least) * lots[:, 0])), 1)
    starts = tf.cast(lots[:, 1] * (lengths - sizes + 1), tf.int32)
    sizes = tf.cast(sizes, tf.int32)
    parts = tf.stack([starts, sizes, tf.cast(lengths, tf.int32) - starts - sizes], axis=1)
    pieces = tf.RaggedTensor.from_row_lengths(
        tokens.flat_values, tf.cast(tf.reshape(parts, [-1]), tf.int64), validate=False
    )
    return tf.gather(pieces, 3 * tf.range(tf.size(sizes)) + 1)
