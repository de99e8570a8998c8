"""T5's span corruption as pure TensorFlow functions, token for token.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (https://arxiv.org/abs/1910.10683), section 3.1.4, and its code,
google-research/text-to-text-transfer-transformer, `t5/data/preprocessors.py` (version 0.9.4).

Example, one span of two noise tokens, vocabulary of 100:

    tokens   4  5  6  7  8
    spans    3 before noise, 2 of noise      random_spans
    inputs   4  5  6 99                      spans_to_sentinels
    targets  99  7  8
"""

import tensorflow as tf

from pretrain.data.seeds import random_bits, uniform


def span_lengths(
    inputs_length: int,
    noise_density: float,
    mean_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> tuple[int, int]:
    """How many raw tokens fill `inputs_length` once corrupted, and how long their targets are.

    T5's `random_spans_helper`: both corrupted sequences count a sentinel a span and one EOS. It computes
    in float64 and its mask in float32, so at noise density 0.15 they disagree about one noise token for
    39 lengths up to 4096 (190, 350, 390, ...); `noise_counts` is the mask's.

    Returns:
        (tokens length, targets length).

    >>> span_lengths(512, noise_density=0.15, mean_span_length=3.0)
    (568, 114)
    """

    def corrupted(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_span_length)
        inputs = tokens - noise + spans * extra_tokens_per_span_inputs + 1
        return inputs, noise + spans * extra_tokens_per_span_targets + 1

    tokens = inputs_length - 1
    while corrupted(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = corrupted(tokens)
    # At one half T5 shortens the targets to the inputs, which are more likely to be a round number.
    if noise_density == 0.5 and targets > inputs:
        return tokens - 1, targets - 1
    return tokens, targets


def noise_counts(
    length: tf.Tensor, noise_density: float, mean_span_length: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """How many noise tokens and noise spans `random_spans` draws.

    Rounds half to even in float32, as T5's mask does. Of two tokens or more there is always a noise token,
    a non-noise token and a span, of fewer no noise; and never more spans than non-noise tokens, where T5
    crashes (a short tail at density 0.5 in spans of 1, for one).

    Args:
        length: int32 of any shape, lengths in tokens.

    Returns:
        (noise tokens, noise spans), int32 of the same shape.

    >>> [int(count) for count in noise_counts(568, noise_density=0.15, mean_span_length=3.0)]
    [85, 28]
    """
    noise = tf.cast(tf.round(tf.cast(length, tf.float32) * noise_density), tf.int32)
    noise = tf.clip_by_value(noise, tf.clip_by_value(length - 1, 0, 1), tf.maximum(length - 1, 0))
    spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_span_length), tf.int32)
    return noise, tf.maximum(tf.minimum(spans, length - noise), 1)


def random_spans(
    lengths: tf.Tensor, noise_density: float, mean_span_length: float, seeds: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts sequences into spans, in turns not noise and noise; every such cut is equally likely.

    Args:
        lengths: int32 [n], tokens in each sequence.
        noise_density: fraction of the tokens that become noise, in (0, 1).
        mean_span_length: mean tokens in a noise span, at least 1.
        seeds: int64 [n, 2], one for each sequence.

    Returns:
        (lengths of the spans before each noise span, lengths of the noise spans), int32 [n, most spans]
        each: as many of a sequence as `noise_counts` says, then zeros.
    """
    noise, spans = noise_counts(lengths, noise_density, mean_span_length)
    return (
        _random_segmentation(lengths - noise, spans, seeds, draw=1),
        _random_segmentation(noise, spans, seeds, draw=0),
    )


def _random_segmentation(items: tf.Tensor, segments: tf.Tensor, seeds: tf.Tensor, draw: int) -> tf.Tensor:
    """Cuts each of the `items` [n] into `segments` [n], none of them empty where there are items enough.

    Returns:
        int32 [n, most segments], their lengths in order, then zeros.
    """
    most = tf.maximum(tf.reduce_max(segments), 1)
    bits = random_bits(seeds, tf.maximum(tf.reduce_max(items), 1) - 1, draw)
    bits = tf.where(tf.range(tf.shape(bits)[1]) < items[:, tf.newaxis] - 1, bits, -1)
    cuts = tf.math.top_k(bits, most - 1).indices
    ends = tf.where(tf.range(most - 1) < segments[:, tf.newaxis] - 1, cuts + 1, items[:, tf.newaxis])
    ends = tf.concat([tf.sort(ends), items[:, tf.newaxis]], axis=1)
    return ends - tf.pad(ends[:, :-1], [[0, 0], [1, 0]])


def spans_to_sentinels(
    tokens: tf.RaggedTensor, before: tf.Tensor, noise: tf.Tensor, vocab_size: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Replaces each noise span by one sentinel, and each span before one by the same sentinel.

    Args:
        tokens: int32 [n, (length)].
        before, noise: as of `random_spans`.
        vocab_size: size of the vocabulary, sentinels included: vocab_size - 1, vocab_size - 2, ...

    Returns:
        (inputs, targets): int32 [n, (length - noise tokens + noise spans)] and
        [n, (noise tokens + spans before)].

    >>> tokens = tf.ragged.constant([[4, 5, 6, 7, 8]])
    >>> before, noise = tf.constant([[2, 1]]), tf.constant([[1, 1]])
    >>> inputs, targets = spans_to_sentinels(tokens, before, noise, vocab_size=100)
    >>> inputs.to_list(), targets.to_list()
    ([[4, 5, 99, 7, 98]], [[99, 6, 98, 8]])
    """
    # Whole spans are copied: to choose among the tokens one by one takes several times as long.
    count, most = tf.unstack(tf.shape(before))
    sentinels = vocab_size - 1 - tf.range(most)
    sizes = tf.concat([_in_turns(before, noise), tf.ones_like(sentinels), [0]], axis=0)
    pieces = tf.RaggedTensor.from_row_lengths(
        tf.concat([tokens.flat_values, sentinels], axis=0), sizes, validate=False
    )
    nothing = tf.size(sizes) - 1
    sentinel = nothing - most + tf.range(most)
    span = tf.reshape(tf.range(2 * count * most), [count, most, 2])

    def joined(one: tf.Tensor, other: tf.Tensor) -> tf.RaggedTensor:
        found = tf.gather(pieces, _in_turns(one, other))
        return tf.RaggedTensor.from_row_splits(
            found.flat_values, found.row_splits[:: 2 * most], validate=False
        )

    inputs = joined(span[..., 0], tf.where(noise > 0, sentinel, nothing))
    targets = joined(tf.where(before > 0, sentinel, nothing), span[..., 1])
    return inputs, targets


def cut_in_two(tokens: tf.RaggedTensor, lengths: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """The first `lengths` tokens of each sequence, and the rest.

    Args:
        tokens: int32 [n, (length)].
        lengths: int32 [n], each at most the sequence's length.

    >>> first, rest = cut_in_two(tf.ragged.constant([[4, 5, 6], [7]]), tf.constant([2, 0]))
    >>> first.to_list(), rest.to_list()
    ([[4, 5], []], [[6], [7]])
    """
    rest = tf.cast(tokens.row_lengths(), tf.int32) - lengths
    parts = tf.RaggedTensor.from_row_lengths(tokens.flat_values, _in_turns(lengths, rest), validate=False)
    first = 2 * tf.range(tf.size(lengths))
    return tf.gather(parts, first), tf.gather(parts, first + 1)


def _in_turns(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.stack([one, other], axis=-1), [-1])


def random_prefix_lengths(lengths: tf.Tensor, minimum: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws where prefixes end, uniform in [minimum, length - 1], so that something is left to predict.

    Args:
        lengths: int32 [n], tokens in each sequence, at least 2.
        minimum: int32 [n] in [1, length - 1], the shortest prefix of each.
        seeds: int64 [n, 2], one for each sequence.

    Returns:
        int32 [n].
    """
    draws = uniform(seeds, 1)[:, 0] * tf.cast(lengths - minimum, tf.float32)
    return minimum + tf.cast(draws, tf.int32)
