"""Permutation language modelling on whole tasks: what is predicted, in which order, and what rows say."""

import collections

import numpy as np
import pytest

from pretrain.errors import InputError
from pretrain.objectives import PermutationLM

LENGTHS = {"inputs": 64}


def spans(chosen: np.ndarray) -> list[int]:
    """The lengths of the stretches of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_both_texts_are_the_chunk_and_eos_is_context(corpus, documents, read):
    examples = read(PermutationLM().bind(corpus()), LENGTHS)
    everything = np.concatenate([np.append(document, 1) for document in documents])
    for name in ("inputs", "targets"):
        np.testing.assert_array_equal(np.concatenate([example[name] for example in examples]), everything)
    for example in examples:
        assert not example["chosen"][example["targets"] == 1].any()


def test_ranks_number_the_chosen_tokens_and_context_has_none(corpus, read):
    for example in read(PermutationLM().bind(corpus()), LENGTHS):
        chosen, order = example["chosen"] > 0, example["order"]
        assert (order[~chosen] == -1).all()
        np.testing.assert_array_equal(np.sort(order[chosen]), np.arange(chosen.sum()))


@pytest.mark.parametrize("max_span", [1, 5])
def test_the_share_is_predicted_in_spans(max_span, corpus, read):
    task = PermutationLM(max_span=max_span).bind(corpus(documents=[np.arange(240_000) % 256 + 3]))
    chosen = np.stack([example["chosen"] for example in read(task, {"inputs": 480})[:-1]])
    if max_span == 1:
        np.testing.assert_array_equal(chosen.sum(1), 80)
    assert chosen.mean() == pytest.approx(1 / 6, abs=0.001)
    # Longer stretches are spans that touch.
    sizes = collections.Counter(size for row in chosen for size in spans(row))
    mean = sum(size * number for size, number in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx({1: 1.2, 5: 2.57}[max_span], abs=0.1)


def test_all_orders_are_equally_likely(corpus, read):
    """Those of three tokens, wherever they stand: chi squared, 5 degrees of freedom."""
    task = PermutationLM(predicted=0.25, max_span=1).bind(corpus(documents=[np.full(36_000, 5)]))
    found = collections.Counter(
        tuple(example["order"][example["chosen"] > 0].tolist()) for example in read(task, {"inputs": 12})[:-1]
    )
    assert len(found) == 6 and sum(found.values()) == 3000
    assert sum((number - 500) ** 2 / 500 for number in found.values()) < 20.5  # p = 0.001


def test_the_order_does_not_depend_on_what_is_chosen(corpus, read):
    """The first token begins the first span: a lot that had that chosen must not put the token first too."""
    task = PermutationLM().bind(corpus(documents=[np.full(96_000, 5)]))
    places = [x["order"][0] / x["chosen"].sum() for x in read(task, {"inputs": 48})[:-1] if x["chosen"][0]]
    assert abs(np.mean(places) - 7 / 16) < 5 * 0.29 / np.sqrt(len(places))


def test_an_epoch_later_others_are_predicted_in_another_order(corpus, read):
    task = PermutationLM().bind(corpus(documents=[np.full(64, 5)]))
    first, second = read(task, {"inputs": 65}, take=2, num_epochs=None)
    np.testing.assert_array_equal(first["targets"], second["targets"])
    assert not np.array_equal(first["chosen"], second["chosen"])
    one, same = (read(task, {"inputs": 65}, seed=3)[0]["order"] for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, first["order"])


@pytest.mark.parametrize("pack", [True, False])
def test_rows_keep_the_order_of_each_example(pack, corpus, read):
    objective = PermutationLM(join_documents=False)
    task = objective.bind(corpus())
    examples = read(task, LENGTHS)
    dataset = task.get_dataset(LENGTHS, "train", shuffle=False, seed=0)
    rows = list(objective.converter(pack)(dataset, LENGTHS).as_numpy_iterator())
    assert len(rows) < len(examples) if pack else len(rows) == len(examples)
    found = []
    for row in rows:
        segments, order = row["encoder_segment_ids"], row["encoder_order"]
        assert (order[segments == 0] == -1).all()
        np.testing.assert_array_equal(row["encoder_loss_weights"] > 0, order >= 0)
        names = ("encoder_input_tokens", "encoder_order")
        for segment in range(1, segments.max() + 1):
            found += [tuple(row[name][segments == segment].tolist() for name in names)]
    made = [(example["inputs"].tolist(), example["order"].tolist()) for example in examples]
    assert sorted(found) == sorted(made)


def test_bad_settings_are_refused(vocabulary):
    for settings, message in (
        ({"predicted": 1.0}, "predicted must be between 0 and 1, not 1.0"),
        ({"max_span": 0}, "max_span must be a whole number of at least 1, not 0"),
        ({"max_span": 2.5}, "max_span must be a whole number of at least 1, not 2.5"),
    ):
        with pytest.raises(InputError, match=message):
            PermutationLM(**settings)
    with pytest.raises(
        InputError, match="PermutationLM needs the lengths of inputs for the two_stream family"
    ):
        PermutationLM().check({"targets": 64}, vocabulary)
