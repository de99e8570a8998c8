"""Masked language modelling on whole tasks: what is hidden, how often, and what is charged for."""

import numpy as np
import pytest
import seqio

from pretrain.errors import InputError
from pretrain.objectives import MaskedLM

LENGTHS = {"inputs": 64}
MASK = 358  # the first sentinel


def test_targets_hold_every_token_once(corpus, documents, read):
    examples = read(MaskedLM().bind(corpus()), LENGTHS)
    everything = np.concatenate([np.append(document, 1) for document in documents])
    np.testing.assert_array_equal(np.concatenate([example["targets"] for example in examples]), everything)
    for example in examples:
        same = example["inputs"] == example["targets"]
        assert same[example["chosen"] == 0].all() and not example["chosen"][example["targets"] == 1].any()


def test_the_rates_are_berts(corpus, read):
    examples = read(MaskedLM().bind(corpus(documents=[np.arange(64_000) % 256 + 3])), {"inputs": 128})[:-1]
    chosen = np.stack([example["chosen"] for example in examples]) > 0
    inputs = np.stack([example["inputs"] for example in examples])[chosen]
    targets = np.stack([example["targets"] for example in examples])[chosen]
    np.testing.assert_array_equal(chosen.sum(1), 19)  # of 128 tokens 15%, rounded
    masked, kept = inputs == MASK, inputs == targets
    other = inputs[~masked & ~kept]
    error = 5 * np.sqrt(0.25 / len(inputs))
    assert abs(masked.mean() - 0.8) < error
    assert abs(kept.mean() - (0.1 + 0.1 / 256)) < error
    assert other.min() >= 3 and other.max() < 259 and len(np.unique(other)) > 200


def test_an_epoch_later_others_are_chosen(corpus, read):
    task = MaskedLM().bind(corpus(documents=[np.full(64, 5)]))
    first, second = read(task, {"inputs": 65}, take=2, num_epochs=None)
    np.testing.assert_array_equal(first["targets"], second["targets"])
    assert not np.array_equal(first["chosen"], second["chosen"])


def test_whole_words_are_chosen(corpus, read):
    text = b" the quick brown fox" * 50
    document = np.frombuffer(text, np.uint8).astype(np.int32) + 3
    objective = MaskedLM(unit="word", replaced=1.0, randomised=0.0)
    for example in read(objective.bind(corpus(documents=[document])), {"inputs": 200}, take=5):
        starts = np.flatnonzero(example["targets"] == 3 + ord(" "))
        for word in np.split(example["chosen"], starts):
            assert len(set(word)) <= 1
        assert 0 < example["chosen"].sum() <= 0.15 * 200 + 6


@pytest.mark.parametrize(("max_ngram", "mean"), [(1, 1.18), (3, 1.93)])
def test_ngrams_are_chosen_together(max_ngram, mean, corpus, read):
    """Stretches of chosen tokens are as long as 1/n says, and longer where two touch."""
    task = MaskedLM(max_ngram=max_ngram).bind(corpus(documents=[np.arange(128_000) % 256 + 3]))
    chosen = np.stack([example["chosen"] for example in read(task, {"inputs": 512})[:-1]])
    assert abs(chosen.mean() - 0.15) < 0.002
    assert chosen.sum() / (np.diff(chosen, axis=1, prepend=0) > 0).sum() == pytest.approx(mean, abs=0.06)


@pytest.mark.parametrize("pack", [True, False])
def test_rows_are_charged_for_all_chosen_and_nothing_else(pack, corpus, read):
    objective = MaskedLM(join_documents=False)
    task = objective.bind(corpus())
    examples = read(task, LENGTHS)
    dataset = task.get_dataset(LENGTHS, "train", shuffle=False, seed=0)
    rows = list(objective.converter(pack)(dataset, LENGTHS).as_numpy_iterator())
    weights = sum(row["encoder_loss_weights"].sum() for row in rows)
    assert weights == sum(example["chosen"].sum() for example in examples)
    assert len(rows) < len(examples) if pack else len(rows) == len(examples)
    for row in rows:
        hidden = row["encoder_input_tokens"] != row["encoder_target_tokens"]
        assert (row["encoder_loss_weights"][hidden] == 1).all()
        assert not row["encoder_loss_weights"][row["encoder_segment_ids"] == 0].any()


def test_another_mask_may_be_asked_for(corpus, read):
    objective = MaskedLM(mask_id=2, replaced=1.0, randomised=0.0)
    for example in read(objective.bind(corpus()), LENGTHS, take=3):
        np.testing.assert_array_equal(example["inputs"] == 2, example["chosen"] == 1)


def test_a_mask_that_is_a_piece_of_the_vocabulary_is_no_random_token(corpus, read):
    settings = {"mask_id": 100, "mask_rate": 0.9, "replaced": 0.0, "randomised": 1.0}
    examples = list(read(MaskedLM(**settings).bind(corpus()), LENGTHS))
    tokens = np.concatenate([example["inputs"][example["chosen"] == 1] for example in examples])
    assert len(tokens) > 4 * 256 and not (tokens == 100).any()


def test_bad_settings_are_refused(vocabulary):
    for settings, message in (
        ({"mask_rate": 0.0}, "mask_rate must be between 0 and 1"),
        ({"replaced": 0.95}, "share the chosen tokens"),
        ({"unit": "letter"}, "unit must be one of"),
        ({"mask_rate": "0.15"}, "mask_rate must be between 0 and 1, not '0.15'"),
        ({"mask_rate": float("nan")}, "mask_rate must be between 0 and 1, not nan"),
        ({"randomised": -0.1}, r"randomised must be in \[0, 1\], not -0.1"),
        ({"max_ngram": 0}, "max_ngram must be a whole number of at least 1, not 0"),
        ({"max_ngram": 1.5}, "max_ngram must be a whole number of at least 1, not 1.5"),
        ({"max_ngram": True}, "max_ngram must be a whole number of at least 1, not True"),
        ({"join_documents": "yes"}, "join_documents must be True or False, not 'yes'"),
    ):
        with pytest.raises(InputError, match=message):
            MaskedLM(**settings)
    with pytest.raises(InputError, match="mask_id=400 is not in the vocabulary, which has 359 ids"):
        MaskedLM(mask_id=400).check(LENGTHS, vocabulary)
    for special in (0, 1):
        with pytest.raises(InputError, match=f"mask_id={special} is padding or EOS in the vocabulary"):
            MaskedLM(mask_id=special).check(LENGTHS, vocabulary)
    with pytest.raises(InputError, match="mask_id=2.5 is not in the vocabulary"):
        MaskedLM(mask_id=2.5).check(LENGTHS, vocabulary)
    with pytest.raises(InputError, match="has no sentinel to hide tokens with"):
        MaskedLM().check(LENGTHS, seqio.ByteVocabulary())
    with pytest.raises(InputError, match="MaskedLM needs the lengths of inputs"):
        MaskedLM().check({"targets": 64}, vocabulary)
