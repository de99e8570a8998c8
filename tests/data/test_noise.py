"""Span corruption against T5's own code, token for token."""

import numpy as np
import pytest
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf

from pretrain.data import noise

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)


def _disagreeing_lengths(density: float, limit: int = 4096) -> list[int]:
    """Lengths whose noise T5 counts differently in float64 (its helper) and in float32 (its mask)."""
    lengths = np.arange(1, limit + 1)
    in_float32 = np.round(lengths.astype(np.float32) * np.float32(density))
    return [int(n) for n, noise32 in zip(lengths, in_float32, strict=True) if round(n * density) != noise32]


def _masks(draw, lengths, seeds) -> list[np.ndarray]:
    graph = tf.function(draw, input_signature=[tf.TensorSpec([], tf.int32), tf.TensorSpec([2, 2], tf.int64)])
    return [graph(tf.constant(length), tf.constant(seed)).numpy() for length in lengths for seed in seeds]


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
def test_the_mask_is_t5s(density, mean):
    seeds = np.random.RandomState(0).randint(-(2**40), 2**40, (2, 2, 2))
    lengths = [1, 2, 4, 5, 6, 8, 9, 10, 12, 20, 100, 117, 512, 568, 1137, *_disagreeing_lengths(0.15)]
    ours = _masks(lambda n, s: noise.random_spans_noise_mask(n, density, mean, s), lengths, seeds)
    theirs = _masks(lambda n, s: t5.random_spans_noise_mask(n, density, tf.unstack(s), mean), lengths, seeds)
    for our_mask, their_mask in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our_mask, their_mask)


def test_the_mask_is_t5s_where_float32_and_float64_disagree():
    lengths, seeds = _disagreeing_lengths(0.15), np.array([[[1, 2], [3, 4]]])
    assert len(lengths) == 39 and lengths[:4] == [190, 350, 390, 670]
    ours = _masks(lambda n, s: noise.random_spans_noise_mask(n, 0.15, 3.0, s), lengths, seeds)
    theirs = _masks(lambda n, s: t5.random_spans_noise_mask(n, 0.15, tf.unstack(s), 3.0), lengths, seeds)
    for length, our_mask, their_mask in zip(lengths, ours, theirs, strict=True):
        np.testing.assert_array_equal(our_mask, their_mask)
        assert our_mask.sum() != round(length * 0.15)


@pytest.mark.parametrize(("length", "expected"), [(0, []), (1, [False]), (2, [False, True])])
def test_the_shortest_masks(length, expected):
    mask = noise.random_spans_noise_mask(length, 0.15, 3.0, tf.constant([[1, 2], [3, 4]]))
    assert mask.numpy().tolist() == expected


def test_where_t5_crashes_there_are_as_many_spans_as_tokens_between_them():
    seeds = tf.constant([[1, 2], [3, 4]])
    with pytest.raises(tf.errors.InvalidArgumentError):
        t5.random_spans_noise_mask(7, 0.5, tf.unstack(seeds), 1.0)
    mask = noise.random_spans_noise_mask(7, 0.5, 1.0, seeds).numpy()
    assert mask.sum() == 4 and np.flatnonzero(np.diff(mask.astype(int)) == 1).size == 3


@pytest.mark.parametrize("density", [0.05, 0.1, 0.15, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("mean", [1.0, 3.0, 3.5, 10.0])
def test_span_lengths_are_t5s(density, mean):
    for inputs in (10, 64, 114, 128, 512, 1024):
        for extra in (0, 1, 2):
            expected = t5.random_spans_helper(
                inputs_length=inputs,
                noise_density=density,
                mean_noise_span_length=mean,
                extra_tokens_per_span_inputs=extra,
                extra_tokens_per_span_targets=extra,
            )
            assert noise.span_lengths(inputs, density, mean, extra, extra) == expected


def test_noise_counts_are_those_of_the_mask():
    lengths = [2, 3, 7, 190, 350, 512, 568]
    for density, mean in [(0.15, 3.0), (0.5, 1.0), (0.3, 8.0)]:
        counted = np.stack(noise.noise_counts(tf.constant(lengths), density, mean), axis=-1)
        seeds = np.array([[[5, 6], [7, 8]]])
        masks = _masks(
            lambda n, s, d=density, m=mean: noise.random_spans_noise_mask(n, d, m, s), lengths, seeds
        )
        drawn = [(mask.sum(), (np.diff(mask.astype(int), prepend=0) == 1).sum()) for mask in masks]
        np.testing.assert_array_equal(counted, drawn)


def test_density_and_span_lengths_are_what_was_asked_for():
    draws = 300
    seeds = np.random.RandomState(0).randint(0, 2**40, (draws, 2, 2))
    masks = np.stack(_masks(lambda n, s: noise.random_spans_noise_mask(n, 0.15, 3.0, s), [568], seeds))
    np.testing.assert_array_equal(masks.sum(axis=1), 85)
    edges = np.diff(masks.astype(int), axis=1, prepend=0, append=0)
    spans = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    assert len(spans) == 28 * draws
    # Of all ways to cut 85 tokens into 28 spans, a span has one token in 27/84 of them; 4 sigma.
    assert abs((spans == 1).mean() - 27 / 84) < 4 * np.sqrt(0.32 * 0.68 / len(spans))
    # Away from the ends, where spans alternate from a fixed start, noise is even.
    thirds = masks[:, 100:-100].mean(axis=0).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(thirds, 0.15, atol=0.012)


def _random_masks() -> list[np.ndarray]:
    random = np.random.RandomState(1)
    return [random.rand(n) < p for n in (0, 1, 2, 3, 20, 60) for p in (0, 0.2, 0.8, 1)]


@pytest.mark.parametrize("name", ["noise_span_to_unique_sentinel", "nonnoise_span_to_unique_sentinel"])
def test_sentinels_are_t5s(name):
    for mask in _random_masks():
        tokens = np.random.RandomState(2).randint(0, 256, len(mask)).astype(np.int32)
        expected = getattr(t5, name)(tf.constant(tokens), tf.constant(mask), VOCABULARY, None)
        ours = getattr(noise, name)(tf.constant(tokens), tf.constant(mask), VOCABULARY.vocab_size)
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype == tf.int32


def test_targets_begin_with_the_sentinel_of_the_leading_span():
    tokens, mask = tf.range(3, 8), tf.constant([False, False, True, False, True])
    inputs = noise.noise_span_to_unique_sentinel(tokens, mask, 359).numpy().tolist()
    targets = noise.nonnoise_span_to_unique_sentinel(tokens, mask, 359).numpy().tolist()
    assert inputs == [3, 4, 358, 6, 357] and targets == [358, 5, 357, 7]


def test_a_prefix_is_uniform_and_leaves_something():
    random = np.random.RandomState(0)
    draws = [int(noise.random_prefix_length(7, 3, seed)) for seed in random.randint(0, 2**31, (400, 2))]
    counts = np.bincount(draws, minlength=7)
    assert counts[:3].sum() == 0 and len(counts) == 7
    np.testing.assert_allclose(counts[3:], 100, atol=4 * np.sqrt(75))
    assert int(noise.random_prefix_length(2, 1, [0, 0])) == 1
