"""BART's denoising on whole tasks: what each noise does to a text, and that the targets are the text."""

import numpy as np
import pytest

from pretrain.errors import InputError
from pretrain.objectives import Denoising
from pretrain.objectives.denoising import (
    Deletion,
    Infilling,
    Masking,
    RandomTokens,
    Rotation,
    SentencePermutation,
    Shuffling,
)

LENGTHS = {"inputs": 101, "targets": 111}
MASK = 358


@pytest.fixture
def pairs(corpus, read):
    """pairs(*noise): inputs and targets of a long document, without EOS."""
    text = np.random.RandomState(0).randint(97, 123, 20_000)
    marks = np.flatnonzero(np.random.RandomState(1).rand(20_000 - 1) < 0.03)
    text[marks], text[marks + 1] = ord("."), ord(" ")

    def pairs(*noise):
        task = Denoising(noise=noise).bind(corpus(documents=[text + 3]))
        examples = read(task, LENGTHS)[:-1]
        for example in examples:
            assert example["inputs"][-1] == example["targets"][-1] == 1
            assert len(example["inputs"]) <= 101 and len(example["targets"]) == 101
        targets = np.concatenate([example["targets"][:-1] for example in examples])
        np.testing.assert_array_equal(targets, text[: len(targets)] + 3)
        return [(example["inputs"][:-1], example["targets"][:-1]) for example in examples]

    return pairs


def test_masking(pairs):
    for inputs, targets in pairs(Masking(rate=0.2)):
        masked = inputs == MASK
        assert masked.sum() == 20 and (inputs == targets)[~masked].all()


def test_bert_style_masking_has_random_tokens_among_the_masks(pairs):
    found = pairs(Masking(rate=0.2, randomised=0.1))
    assert all(15 < (inputs != targets).sum() <= 20 for inputs, targets in found)
    share = sum((inputs == MASK).sum() for inputs, _ in found) / (20 * len(found))
    assert abs(share - 0.9) < 5 * np.sqrt(0.09 / (20 * len(found)))


def test_whole_words_are_masked(corpus, read):
    document = np.frombuffer(b" the quick brown fox" * 50, np.uint8).astype(np.int32) + 3
    objective = Denoising(noise=[Masking(rate=0.3, whole_words=True)])
    masked = 0
    for example in read(objective.bind(corpus(documents=[document])), LENGTHS):
        hidden, targets = example["inputs"][:-1] == MASK, example["targets"][:-1]
        for word in np.split(hidden, np.flatnonzero(targets == 3 + ord(" "))[1:]):
            assert len(set(word)) == 1
        masked += hidden.sum()
    assert masked / len(document) == pytest.approx(0.3, abs=0.04)


def test_random_tokens(pairs):
    for inputs, targets in pairs(RandomTokens(rate=0.5)):
        assert 40 <= (inputs != targets).sum() <= 50 and MASK not in inputs


def test_deletion(pairs):
    for inputs, targets in pairs(Deletion(rate=0.3)):
        assert len(inputs) == 70
        rest = iter(targets.tolist())
        assert all(token in rest for token in inputs.tolist()), "what is left is not in its order"


def test_infilling(pairs):
    spans = [(inputs == MASK).sum() for inputs, _ in pairs(Infilling())]
    assert all(len(inputs) - (inputs == MASK).sum() == 70 for inputs, _ in pairs(Infilling()))
    assert 9 < np.mean(spans) < 12.5  # 30 tokens in spans of 3, and the last one cut


def test_sentence_permutation(pairs):
    moved = 0
    for inputs, targets in pairs(SentencePermutation()):
        moved += not np.array_equal(inputs, targets)
        np.testing.assert_array_equal(np.sort(inputs), np.sort(targets))
        ends = [piece for piece in bytes((targets - 3).tolist()).split(b". ")[:-1] if piece.strip()]
        assert all(piece.strip() + b". " in bytes((inputs - 3).tolist()) for piece in ends)
    assert moved > 100


def test_rotation_and_its_rate(pairs):
    turned = 0
    for inputs, targets in pairs(Rotation(rate=0.5)):
        doubled = np.concatenate([targets, targets]).tolist()
        assert any(doubled[k : k + 100] == inputs.tolist() for k in range(100))
        turned += not np.array_equal(inputs, targets)
    assert abs(turned / 200 - 0.495) < 5 * np.sqrt(0.25 / 200)


def test_shuffling(pairs):
    for inputs, targets in pairs(Shuffling()):
        assert not np.array_equal(inputs, targets)
        np.testing.assert_array_equal(np.sort(inputs), np.sort(targets))


def test_noises_follow_each_other_and_draw_for_themselves(pairs):
    for inputs, _ in pairs(Deletion(rate=0.5), Masking(rate=0.5)):
        assert len(inputs) == 50 and (inputs == MASK).sum() == 25
    # The same noise twice: were its draws the same, the second would find what the first has hidden.
    for inputs, _ in pairs(Masking(rate=0.2), Masking(rate=0.2)):
        assert (inputs == MASK).sum() > 20


def test_bad_settings_are_refused(vocabulary):
    with pytest.raises(InputError, match=r"Deletion\.rate must be in \[0, 1\], not 1\.2"):
        Deletion(rate=1.2)
    with pytest.raises(InputError, match=r"Infilling\.mean_span_length must be in \[1, 100\], not 0"):
        Infilling(mean_span_length=0)
    with pytest.raises(InputError, match=r"Masking\.randomised must be in \[0, 1\], not nan"):
        Masking(randomised=float("nan"))
    with pytest.raises(InputError, match="Deletion.whole_words must be True or False, not 'no'"):
        Deletion(whole_words="no")
    with pytest.raises(InputError, match="give a list of noises"):
        Denoising(noise=[])
    with pytest.raises(InputError, match="give a list of noises"):
        Denoising(noise=["infilling"])
    with pytest.raises(InputError, match="Denoising needs the lengths of inputs and targets"):
        Denoising().check({"targets": 64}, vocabulary)
