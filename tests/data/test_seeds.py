"""Noise seeds are a function of seed, task, shard and position, and of nothing else."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from pretrain.data import seeds


def _draw(seed=0, name="corpus", shard=0, count=6) -> np.ndarray:
    with seeds.stream(seed, name, shard):
        return seeds.of_positions()(tf.range(count, dtype=tf.int64)).numpy()


def test_the_same_stream_gives_the_same_seeds_and_every_position_its_own():
    drawn = _draw()
    assert drawn.shape == (6, 2) and drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn, _draw())
    np.testing.assert_array_equal(drawn[:4], _draw(count=4))
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "other"}, {"shard": 1}, {"seed": None}])
def test_another_seed_name_or_shard_gives_other_seeds(other):
    assert not np.intersect1d(_draw(), _draw(**other)).size


def test_no_seed_is_one_fresh_seed_for_the_whole_stream():
    with seeds.stream(None, "corpus", 0):
        seeds_of = seeds.of_positions()
    np.testing.assert_array_equal(seeds_of([0, 1]), seeds_of([0, 1]))
    assert not np.intersect1d(_draw(seed=None), _draw(seed=None)).size


def test_two_uses_in_one_stream_are_unrelated():
    with seeds.stream(0, "corpus", 0):
        first, second = seeds.of_positions(), seeds.of_positions()
    assert not np.intersect1d(first([0, 1, 2]), second([0, 1, 2])).size


def test_a_stream_ends_with_its_block_even_after_an_exception():
    with pytest.raises(KeyError), seeds.stream(0, "corpus", 0):
        raise KeyError
    with pytest.raises(RuntimeError, match="the task that"):
        seeds.of_positions()


def test_threads_do_not_share_a_stream():
    outcome = []

    def other_thread():
        try:
            seeds.of_positions()
        except RuntimeError as error:
            outcome.append(error)

    with seeds.stream(0, "corpus", 0):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert outcome


def test_numbers_are_of_the_seed_and_the_draw_and_of_nothing_beside_them():
    drawn = _draw(count=3)
    bits = seeds.random_bits(drawn, 50).numpy()
    assert bits.shape == (3, 50) and bits.dtype == np.int32 and bits.min() >= 0
    np.testing.assert_array_equal(seeds.random_bits(drawn[1:2], 20), bits[1:2, :20])
    everything = np.concatenate([bits, seeds.random_bits(drawn, 50, draw=1)])
    assert len(np.unique(everything)) == everything.size
    assert seeds.random_bits(drawn, 0).shape == (3, 0) and seeds.random_bits(drawn[:0], 5).shape == (0, 5)


def test_bits_are_those_of_splitmix64():
    """Against its published algorithm, in Python's own integers."""
    mask = 2**64 - 1

    def finalizer(value):
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
        return value ^ (value >> 31)

    step = 0x9E3779B97F4A7C15
    first, second = 12345, -678
    start = finalizer(((finalizer((first + 3 + step) & mask) ^ (second & mask)) + step) & mask)
    expected = [finalizer((start + (n + 1) * step) & mask) >> 33 for n in range(10)]
    assert seeds.random_bits(tf.constant([[first, second]], tf.int64), 10, draw=3).numpy().tolist() == [
        expected
    ]


def test_numbers_are_uniform_within_a_seed_and_between_seeds():
    """Neighbouring numbers, positions and draws in a table of 16 x 16 cells; 4 sigma of chi-squared."""
    numbers = seeds.uniform(_draw(count=1000), 200).numpy()
    assert numbers.dtype == np.float32 and numbers.min() >= 0 and numbers.max() < 1
    cells = (numbers * 16).astype(int)
    for one, other in (
        (cells[:, :-1], cells[:, 1:]),
        (cells[:-1], cells[1:]),
        (cells, (seeds.uniform(_draw(count=1000), 200, draw=1).numpy() * 16).astype(int)),
    ):
        counts = np.bincount((16 * one + other).ravel(), minlength=256)
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi_squared - 255) < 4 * np.sqrt(2 * 255)


def test_the_largest_number_is_less_than_one(monkeypatch):
    monkeypatch.setattr(seeds, "random_bits", lambda *_: tf.constant([[0, 2**31 - 1]]))
    assert seeds.uniform(None, 2).numpy().tolist() == [[0, 1 - 2**-24]]
