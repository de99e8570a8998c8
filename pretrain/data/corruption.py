"""Which tokens of many sequences are chosen, and what is put in their place: pure TensorFlow functions.

Shapes: n sequences, m tokens in the longest; what is beyond the end of a sequence is never chosen. Random
numbers come from `data.seeds`: int64 [n, 2], and a number for each draw.

Example, a vocabulary whose pieces begin a word with a space:

    tokens    _the  _qu  ick  _fox
    units     0     1    1    2         words
    chosen    no    yes  yes  no        chosen
"""

import tensorflow as tf

from pretrain.data.seeds import random_bits, uniform


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
    units: tf.Tensor, eligible: tf.Tensor, rate: float | tf.Tensor, seeds: tf.Tensor, draw: int
) -> tf.Tensor:
    """Chooses whole units at random until a share of the tokens is reached.

    The unit that crosses the share is taken as often as makes the mean number of tokens right, but the first
    one always: a sequence has one at least. Where every token is a unit, the number is exact: the share of
    the eligible tokens, rounded.

    Args:
        units: int32 [n, m], the number of the unit each token is in, from 0 to m - 1, in order.
        eligible: bool [n, m], the tokens that may be chosen.
        rate: the share of them, in [0, 1].

    Returns:
        bool [n, m].
    """
    count, most = tf.unstack(tf.shape(units))
    sizes = _sums(tf.cast(eligible, tf.int32), units)
    number = tf.reduce_sum(sizes, axis=1, keepdims=True)
    share = tf.cast(tf.round(tf.cast(number, tf.float32) * rate), tf.int32)
    share = tf.clip_by_value(share, tf.minimum(number, 1), number)
    # In random order, those with nothing to choose last; a number of its own tells equal draws apart.
    lots = tf.cast(random_bits(seeds, most, draw), tf.int64) * tf.cast(most, tf.int64)
    lots += tf.cast(tf.range(most), tf.int64)
    order = tf.argsort(tf.where(sizes > 0, lots, tf.int64.max), axis=1)
    in_order = tf.gather(sizes, order, batch_dims=1)
    after = tf.cumsum(in_order, axis=1)
    room = share - (after - in_order)
    coin = uniform(seeds, 1, draw + 1) * tf.cast(in_order, tf.float32)
    fits = (in_order <= room) | (coin < tf.cast(room, tf.float32)) | (tf.range(most) == 0)
    taken = (in_order > 0) & (room > 0) & fits
    rows = tf.broadcast_to(tf.range(count)[:, tf.newaxis], [count, most])
    by_unit = tf.scatter_nd(tf.stack([rows, order], axis=2), tf.cast(taken, tf.int32), [count, most])
    return (tf.gather(by_unit, units, batch_dims=1) > 0) & eligible


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
