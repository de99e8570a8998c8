"""Prefix language modelling on whole tasks, in both families; T5's preprocessor is the oracle of the cuts."""

import numpy as np
import pytest
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf

from pretrain.data import noise
from pretrain.errors import InputError
from pretrain.objectives import PrefixLM

FAMILIES = [("decoder", {"targets": 64}), ("encoder_decoder", {"inputs": 64, "targets": 20})]
parametrize = pytest.mark.parametrize(("family", "lengths"), FAMILIES)


@parametrize
def test_prefix_and_rest_hold_every_token_once(family, lengths, corpus, documents, read):
    examples = read(PrefixLM(family=family).bind(corpus()), lengths)
    parts = [np.concatenate([example["inputs"], example["targets"][:-1]]) for example in examples]
    everything = np.concatenate(documents)
    chunk = 63 if family == "decoder" else 64
    assert len(everything) % chunk != 1, "else the last token would be dropped"
    np.testing.assert_array_equal(np.concatenate(parts), everything)
    assert {len(part) for part in parts[:-1]} == {chunk}
    for example in examples:
        assert len(example["inputs"]) >= 1 and len(example["targets"]) >= 2
        assert len(example["targets"]) <= lengths["targets"] and example["targets"][-1] == 1


@parametrize
def test_documents_cut_alone_are_kept_but_single_tokens(family, lengths, corpus, documents, read):
    examples = read(PrefixLM(family=family, join_documents=False).bind(corpus()), lengths)
    parts = [[*example["inputs"].tolist(), *example["targets"][:-1].tolist()] for example in examples]
    chunk = 63 if family == "decoder" else 64
    pieces = [doc[start : start + chunk].tolist() for doc in documents for start in range(0, len(doc), chunk)]
    assert parts == [piece for piece in pieces if len(piece) > 1]
    assert len(parts) < len(pieces)


@parametrize
def test_the_cut_is_uniform_over_the_places_it_may_be(family, lengths, corpus, read):
    task = PrefixLM(family=family).bind(corpus(documents=[np.full(20_000, 5)]))
    places = np.array([len(example["inputs"]) for example in read(task, lengths)[:-1]])
    low, high = (1, 62) if family == "decoder" else (64 + 1 - 20, 63)
    assert places.min() >= low and places.max() <= high
    sigma = np.sqrt(((high - low + 1) ** 2 - 1) / 12 / len(places))
    assert abs(places.mean() - (low + high) / 2) < 4 * sigma
    assert len(np.unique(places)) > 0.8 * (high - low + 1)


def made_by_t5(documents, lengths, vocabulary) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of `t5.prefix_lm`, which appends no EOS."""
    ragged = tf.ragged.constant([document.tolist() for document in documents], tf.int32)
    dataset = tf.data.Dataset.from_tensor_slices(ragged).map(lambda document: {"targets": document})
    features = {name: seqio.Feature(vocabulary, add_eos=name == "targets") for name in lengths}
    with seqio.map_seed_manager(0):
        made = t5.prefix_lm(dataset, sequence_length=lengths, output_features=features)
    return [(x["inputs"].tolist(), x["targets"].tolist()) for x in made.as_numpy_iterator()]


def test_inputs_and_targets_are_t5s_of_the_same_cuts(documents, vocabulary, monkeypatch):
    """With targets as long as the inputs; T5 cuts anywhere whatever their length, and trims what is too long.

    A chunk of one token is for T5 an example without inputs, and here none.
    """
    lengths = {"inputs": 64, "targets": 64}
    theirs = [pair for pair in made_by_t5(documents, lengths, vocabulary) if sum(map(len, pair)) > 1]
    chunks = [inputs + targets for inputs, targets in theirs]
    pieces = [document[start : start + 64].tolist() for document in documents for start in range(0, 700, 64)]
    assert chunks == [piece for piece in pieces if len(piece) > 1]
    cuts = tf.constant([len(inputs) for inputs, _ in theirs])
    monkeypatch.setattr(noise, "random_prefix_lengths", lambda sizes, minimum, seeds: cuts)
    features = {"targets": seqio.Feature(vocabulary, add_eos=True)}
    seeds = tf.zeros([len(chunks), 2], tf.int64)
    objective = PrefixLM(family="encoder_decoder")
    ours = objective.ended_examples(tf.ragged.constant(chunks, tf.int32), seeds, lengths, features)
    assert ours["inputs"].to_list() == [inputs for inputs, _ in theirs]
    assert ours["targets"].to_list() == [[*targets, 1] for _, targets in theirs]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_cuts_are_where_t5s_are_and_as_often(size):
    number = 400
    seeds = tf.constant(np.random.RandomState(0).randint(0, 2**62, (number, 2)), tf.int64)
    sizes = tf.fill([number], size)
    ours = np.bincount(noise.random_prefix_lengths(sizes, tf.ones_like(sizes), seeds), minlength=size)

    @tf.function
    def t5s(seed):
        return tf.reduce_sum(tf.cast(t5.random_prefix_noise_mask(size, 0.5, [seed]), tf.int32))

    theirs = np.bincount([t5s(seed).numpy() for seed in seeds], minlength=size)
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_array_equal(ours > 0, np.arange(size) > 0)
    for counts in (ours, theirs):
        assert np.abs(counts[1:] - number / (size - 1)).max() < 5 * np.sqrt(number / (size - 1))


@pytest.mark.parametrize("pack", [True, False])
def test_decoder_rows_count_only_what_follows_the_prefix(pack, corpus, read):
    objective, lengths = PrefixLM(join_documents=False), {"targets": 64}
    task = objective.bind(corpus())
    examples = read(task, lengths)
    dataset = task.get_dataset(lengths, "train", shuffle=False, seed=0)
    weights = prefix = 0
    for row in objective.converter(pack)(dataset, lengths).as_numpy_iterator():
        weights += row["decoder_loss_weights"].sum()
        prefix += row["decoder_prefix_mask"].sum()
        for segment in range(1, row["decoder_segment_ids"].max() + 1):
            inside = row["decoder_segment_ids"] == segment
            mask, counts = row["decoder_prefix_mask"][inside], row["decoder_loss_weights"][inside]
            k = int((counts == 0).sum())
            np.testing.assert_array_equal(mask, np.arange(len(mask)) <= k)
            np.testing.assert_array_equal(counts, np.arange(len(counts)) >= k)
    assert weights == sum(len(example["targets"]) for example in examples)
    assert prefix == sum(len(example["inputs"]) + 1 for example in examples)


def test_another_family_is_refused():
    with pytest.raises(InputError, match="family must be 'decoder' or 'encoder_decoder', not 'encoder'"):
        PrefixLM(family="encoder")


def test_least_lengths(vocabulary):
    PrefixLM().check({"targets": 3}, vocabulary)
    with pytest.raises(InputError, match=r"lengths\['targets'\] must be a whole number of at least 3"):
        PrefixLM().check({"targets": 2}, vocabulary)
    with pytest.raises(InputError, match="needs the lengths of inputs and targets"):
        PrefixLM(family="encoder_decoder").check({"targets": 3}, vocabulary)
