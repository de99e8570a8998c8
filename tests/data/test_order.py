"""The order of an epoch is a permutation that looks random and never changes; a mix keeps its rates."""

import itertools
import math

import numpy as np
import pytest

from pretrain.data.order import Mix, shuffled
from pretrain.errors import InputError

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 1000, 65536, 65537]


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return shuffled(np.arange(size), size, seed, epoch)


@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_has_every_example_once(size):
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (-5, 2**70)):
        np.testing.assert_array_equal(np.sort(order(size, seed, epoch)), np.arange(size))


def test_any_position_is_answered_alone_and_in_any_shape():
    whole = order(1000, seed=3, epoch=4)
    assert whole.dtype == np.int64
    positions = np.random.RandomState(0).randint(0, 1000, (7, 5))
    np.testing.assert_array_equal(shuffled(positions, 1000, seed=3, epoch=4), whole[positions])
    for position in (0, 17, 999):
        one = shuffled(position, 1000, seed=3, epoch=4)
        assert one.shape == () and one == whole[position]
    assert shuffled(np.zeros((0, 3), int), 1000, seed=3, epoch=4).shape == (0, 3)


def test_a_huge_epoch_is_no_slower():
    size = 10**15
    far = shuffled(np.arange(size - 256, size), size, seed=0, epoch=0)
    assert len(set(far.tolist())) == 256
    assert far.min() >= 0 and far.max() < size


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), ([0, 9], 9), (0, 0)])
def test_positions_outside_the_epoch_are_refused(index, size):
    with pytest.raises(IndexError, match=f"an epoch of {size}"):
        shuffled(np.array(index), size, seed=0, epoch=0)


def test_seeds_and_epochs_give_unrelated_orders():
    size = 10_000
    orders = [order(size, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for one, other in itertools.combinations(orders, 2):
        assert np.count_nonzero(one == other) < 10  # of two random ones, 1 is expected
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_neighbours_end_up_far_apart():
    size = 100_000
    for seed in range(3):
        shuffle = order(size, seed)
        assert abs(np.corrcoef(shuffle[:-1], shuffle[1:])[0, 1]) < 0.02
        assert abs(np.corrcoef(shuffle, np.arange(size))[0, 1]) < 0.02
        assert np.count_nonzero(np.abs(np.diff(shuffle)) == 1) < 12  # 2 are expected


def too_large(counts: np.ndarray, expected: float) -> bool:
    """Whether chi squared is more than 4 standard deviations above its mean."""
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() > freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [10, 97])
@pytest.mark.parametrize("position", [0, -1])
def test_any_example_may_come_at_any_position(size, position):
    draws = 2000
    seen = [int(shuffled(position % size, size, seed, epoch=0)) for seed in range(draws)]
    assert not too_large(np.bincount(seen, minlength=size), draws / size)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_epochs_take_every_order_equally_often(size):
    draws = 1500
    index = {each: number for number, each in enumerate(itertools.permutations(range(size)))}
    seen = [index[tuple(order(size, seed=7, epoch=epoch).tolist())] for epoch in range(draws)]
    assert not too_large(np.bincount(seen, minlength=len(index)), draws / len(index))


def test_the_order_of_existing_runs_does_not_change():
    """Golden: another order would feed a resumed run examples twice."""
    assert order(12).tolist() == [11, 10, 4, 3, 9, 2, 0, 7, 5, 6, 8, 1]
    assert shuffled(np.arange(5), 65537, seed=1, epoch=2).tolist() == [6296, 34355, 49501, 57517, 41504]
    assert shuffled(np.arange(3), 10**12, seed=-1, epoch=10**20).tolist() == [
        752352110128,
        87148376769,
        724824350342,
    ]
    store, index = Mix([0.5, 0.3, 0.2]).position(np.arange(10))
    assert (store.tolist(), index.tolist()) == (
        [0, 1, 2, 0, 1, 0, 0, 2, 1, 0],
        [0, 0, 0, 1, 1, 2, 3, 1, 2, 4],
    )


RATES = [
    [1.0],
    [1, 1],
    [0.7, 0.3],
    [3, 1],
    [5, 3, 2],
    [1000, 1, 1],
    [0.25, 0, 0.75],
    [0.1] * 9,
    [np.e, np.pi],
]


@pytest.mark.parametrize("rates", RATES)
def test_every_prefix_of_a_mix_keeps_the_rates(rates):
    mix = Mix(rates)
    n = np.arange(1, mix.PERIOD * 2 + 1)
    store, _ = mix.position(n - 1)
    np.testing.assert_allclose(mix.turns / mix.PERIOD, np.array(rates) / sum(rates), atol=1 / mix.PERIOD)
    for number, turns in enumerate(mix.turns):
        off = np.cumsum(store == number) - turns / mix.PERIOD * n
        assert np.abs(off).max() <= (len(rates) + 1) / 2


@pytest.mark.parametrize("rates", RATES)
def test_a_store_is_read_in_order_without_a_gap(rates):
    mix = Mix(rates)
    store, index = mix.position(np.arange(2 * mix.PERIOD + 1000))
    assert store.dtype == index.dtype == np.int64
    for number in range(len(rates)):
        mine = index[store == number]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


def test_a_mix_answers_for_any_position_alone():
    mix = Mix([2, 1])
    store, index = mix.position(np.arange(1000).reshape(10, 100))
    assert store.shape == index.shape == (10, 100)
    assert mix.position(123) == (store[1, 23], index[1, 23])
    far_store, far_index = mix.position(10**15)
    assert abs(int(far_index) - 10**15 * int(mix.turns[far_store]) // mix.PERIOD) <= 2


def test_one_store_is_read_as_it_is():
    store, index = Mix([0.3]).position(np.arange(100_000))
    assert not store.any()
    np.testing.assert_array_equal(index, np.arange(100_000))


@pytest.mark.parametrize("rates", [[], [0, 0], [1, -0.1], [1, math.nan], [math.inf, 1], [1, "2"], [1, None]])
def test_bad_rates_are_refused(rates):
    with pytest.raises(InputError, match=r"The rates of a mix are \["):
        Mix(rates)


def test_a_rate_that_would_never_have_a_turn_is_refused():
    with pytest.raises(InputError, match=r"Rate 1 of a mix, 1e-09, is too small"):
        Mix([1, 1e-9])
