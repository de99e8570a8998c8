"""T5's span corruption as pure TensorFlow functions, token for token.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (https://arxiv.org/abs/1910.10683), section 3.1.4, and its code,
google-research/text-to-text-transfer-transformer, `t5/data/preprocessors.py` (version 0.9.4).

Example, one span of two noise tokens, vocabulary of 100:

    tokens      =  4  5  6  7  8
    noise_mask  =  F  F  T  T  F
    inputs      =  4  5 99     8        noise_span_to_unique_sentinel
    targets     = 99     6  7 98        nonnoise_span_to_unique_sentinel
"""

import tensorflow as tf


def span_lengths(
    inputs_length: int,
    noise_density: float,
    mean_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> tuple[int, int]:
    """How many raw tokens fill `inputs_length` once corrupted, and how long their targets are.

    T5's `random_spans_helper`: both corrupted sequences count a sentinel a span and one EOS. It computes
    in float64 and the mask in float32, so at noise density 0.15 they disagree about one noise token for
    39 lengths up to 4096 (190, 350, 390, ...); `noise_counts` says what the mask will do.

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
    """How many noise tokens and noise spans `random_spans_noise_mask` draws.

    Rounds half to even in float32, as T5's mask does. There is always a noise token, a non-noise token
    and a span; and never more spans than non-noise tokens, where T5 crashes (a short tail at density 0.5
    in spans of 1, for one).

    Args:
        length: int32 of any shape, lengths in tokens.

    Returns:
        (noise tokens, noise spans), int32 of the same shape.

    >>> [int(count) for count in noise_counts(568, noise_density=0.15, mean_span_length=3.0)]
    [85, 28]
    """
    length = tf.maximum(length, 2)
    noise = tf.cast(tf.round(tf.cast(length, tf.float32) * noise_density), tf.int32)
    noise = tf.clip_by_value(noise, 1, length - 1)
    spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_span_length), tf.int32)
    return noise, tf.clip_by_value(spans, 1, length - noise)


def random_spans_noise_mask(
    length: tf.Tensor, noise_density: float, mean_span_length: float, seeds: tf.Tensor
) -> tf.Tensor:
    """Marks random spans as noise; every mask with these counts of tokens and spans is equally likely.

    Spans alternate and begin with non-noise, so a sequence ends in noise.

    Args:
        length: int32 scalar.
        noise_density: fraction of the tokens that become noise, in (0, 1).
        mean_span_length: mean tokens in a noise span, at least 1.
        seeds: integer [2, 2]: one seed for the noise spans, one for the spans between.

    Returns:
        bool [length], True on noise.
    """
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    noise_lengths = _random_segmentation(noise, spans, seeds[0])
    between_lengths = _random_segmentation(tf.maximum(length, 2) - noise, spans, seeds[1])
    ends = tf.cumsum(tf.reshape(tf.stack([between_lengths, noise_lengths], axis=1), [-1]))
    flips = tf.scatter_nd(ends[:-1, tf.newaxis], tf.ones_like(ends[:-1]), [tf.maximum(length, 2)])
    return (tf.cumsum(flips) % 2 == 1)[:length]


def _random_segmentation(items: tf.Tensor, segments: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Cuts `items` into non-empty segments; int32 [segments], which sums to `items`."""
    order = tf.argsort(tf.random.stateless_uniform([items - 1], seed=seed))
    cuts = tf.where(order < segments - 1)[:, 0]
    edges = tf.concat([[0], tf.cast(cuts, tf.int32) + 1, [items]], axis=0)
    return edges[1:] - edges[:-1]


def noise_span_to_unique_sentinel(tokens: tf.Tensor, noise_mask: tf.Tensor, vocab_size: int) -> tf.Tensor:
    """Replaces each noise span by one sentinel: vocab_size - 1, vocab_size - 2, ...

    Args:
        tokens: integer [length].
        noise_mask: bool [length].
        vocab_size: size of the vocabulary, sentinels included.

    Returns:
        [length - noise tokens + noise spans], of the dtype of `tokens`.

    >>> noise_span_to_unique_sentinel(
    ...     tf.constant([4, 5, 6, 7, 8]), tf.constant([False, False, True, True, False]), 100
    ... ).numpy().tolist()
    [4, 5, 99, 8]
    """
    follows_noise = tf.pad(noise_mask[:-1], [[1, 0]])
    starts = noise_mask & ~follows_noise
    sentinels = vocab_size - tf.cumsum(tf.cast(starts, tokens.dtype))
    return tf.boolean_mask(tf.where(starts, sentinels, tokens), ~(noise_mask & follows_noise))


def nonnoise_span_to_unique_sentinel(tokens: tf.Tensor, noise_mask: tf.Tensor, vocab_size: int) -> tf.Tensor:
    """Replaces each span between the noise by one sentinel: the targets that go with the inputs above.

    >>> nonnoise_span_to_unique_sentinel(
    ...     tf.constant([4, 5, 6, 7, 8]), tf.constant([False, False, True, True, False]), 100
    ... ).numpy().tolist()
    [99, 6, 7, 98]
    """
    return noise_span_to_unique_sentinel(tokens, ~noise_mask, vocab_size)


def random_prefix_length(length: tf.Tensor, minimum: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws where a prefix ends, uniform in [minimum, length - 1], so that something is left to predict.

    Args:
        length: int32 scalar, tokens in the sequence, at least 2.
        minimum: int32 scalar in [1, length - 1], the shortest prefix.
        seed: integer [2].

    Returns:
        int32 scalar.
    """
    return tf.random.stateless_uniform([], minval=minimum, maxval=length, dtype=tf.int32, seed=seed)
