"""Noise seeds are a function of seed, task, shard and position, and of nothing else."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from pretrain.data import seeds


def _draw(seed=0, name="corpus", shard=0, count=6, num_seeds=2) -> np.ndarray:
    with seeds.stream(seed, name, shard):
        dataset = seeds.with_seeds(tf.data.Dataset.range(count), num_seeds)
    return np.stack([drawn for _, drawn in dataset.as_numpy_iterator()])


def test_the_same_stream_gives_the_same_seeds_and_every_position_its_own():
    drawn = _draw()
    assert drawn.shape == (6, 2, 2) and drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn, _draw())
    np.testing.assert_array_equal(drawn[:4], _draw(count=4))
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "other"}, {"shard": 1}, {"seed": None}])
def test_another_seed_name_or_shard_gives_other_seeds(other):
    assert not np.intersect1d(_draw(), _draw(**other)).size


def test_no_seed_is_one_fresh_seed_for_the_whole_stream():
    with seeds.stream(None, "corpus", 0):
        dataset = seeds.with_seeds(tf.data.Dataset.range(3), 1)
    first, again = ([drawn.tolist() for _, drawn in dataset.as_numpy_iterator()] for _ in range(2))
    assert first == again
    assert not np.intersect1d(_draw(seed=None), _draw(seed=None)).size


def test_two_uses_in_one_stream_are_unrelated():
    with seeds.stream(0, "corpus", 0):
        uses = [seeds.with_seeds(tf.data.Dataset.range(3), 1) for _ in range(2)]
    first, second = (np.stack([drawn for _, drawn in use.as_numpy_iterator()]) for use in uses)
    assert not np.intersect1d(first, second).size


def test_a_stream_ends_with_its_block_even_after_an_exception():
    with pytest.raises(KeyError), seeds.stream(0, "corpus", 0):
        raise KeyError
    with pytest.raises(RuntimeError, match="the task that"):
        seeds.with_seeds(tf.data.Dataset.range(1), 1)


def test_threads_do_not_share_a_stream():
    outcome = []

    def other_thread():
        try:
            seeds.with_seeds(tf.data.Dataset.range(1), 1)
        except RuntimeError as error:
            outcome.append(error)

    with seeds.stream(0, "corpus", 0):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert outcome


def test_a_restored_iterator_continues_with_the_same_seeds(tmp_path):
    with seeds.stream(0, "corpus", 0):
        dataset = seeds.with_seeds(tf.data.Dataset.range(6), 2)
    iterator = iter(dataset)
    next(iterator), next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "position"))
    restored = iter(dataset)
    tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
    np.testing.assert_array_equal(np.stack([drawn.numpy() for _, drawn in restored]), _draw()[2:])
