"""I.i.d. denoising: T5's functions of the same hidden tokens are the oracle."""

import numpy as np
import pytest
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf

from pretrain.data import corruption
from pretrain.errors import InputError
from pretrain.objectives import IidDenoising

LENGTHS = {"inputs": 65, "targets": 40}


def hidden_by(example) -> np.ndarray:
    """Which tokens of an example's text are hidden, by its inputs and targets."""
    sentinel = iter(example["inputs"][example["inputs"] > 258].tolist())
    marks, mark = [], next(sentinel, None)
    spans = np.split(example["targets"][:-1], np.flatnonzero(example["targets"][:-1] > 258))[1:]
    lengths = {int(span[0]): len(span) - 1 for span in spans}
    for token in example["inputs"][:-1].tolist():
        if token == mark:
            marks += [True] * lengths[token]
            mark = next(sentinel, None)
        else:
            marks.append(False)
    return np.array(marks)


def test_inputs_and_targets_are_t5s_of_the_same_mask():
    random = np.random.RandomState(0)
    for _ in range(50):
        tokens = random.randint(3, 259, 40).astype(np.int32)
        hidden = random.rand(40) < 0.3
        inputs, targets = corruption.unique_sentinels(
            tf.RaggedTensor.from_tensor(tokens[None]), tf.constant(hidden[None]), 359
        )
        feature = seqio.ByteVocabulary(extra_ids=100)
        for ours, function in (
            (inputs, t5.noise_span_to_unique_sentinel),
            (targets, t5.nonnoise_span_to_unique_sentinel),
        ):
            expected = function(tf.constant(tokens), tf.constant(hidden), feature, seeds=None)
            assert ours.to_list()[0] == expected.numpy().tolist()


@pytest.mark.parametrize("drop", [False, True])
def test_the_text_can_be_put_together_again(drop, corpus, documents, read):
    objective = IidDenoising(drop=drop)
    examples = read(objective.bind(corpus()), LENGTHS)
    everything = np.concatenate(documents)
    if drop:
        found = np.concatenate([np.concatenate([e["inputs"][:-1], e["targets"][:-1]]) for e in examples])
        np.testing.assert_array_equal(np.sort(found), np.sort(everything))
    else:
        vocabulary = seqio.ByteVocabulary(extra_ids=100)
        found = [t for e in examples for t in objective.complete(e["inputs"], e["targets"], vocabulary)]
        np.testing.assert_array_equal(found, everything)


def test_tokens_are_hidden_independently(corpus, read):
    task = IidDenoising().bind(corpus(documents=[np.random.RandomState(0).randint(3, 259, 32_000)]))
    hidden = np.stack([hidden_by(example) for example in read(task, LENGTHS)[:-1]])
    assert not hidden[:, 0].any()
    share = hidden[:, 1:].mean()
    assert abs(share - 0.15) < 5 * np.sqrt(0.15 * 0.85 / hidden[:, 1:].size)
    both = (hidden[:, 1:-1] & hidden[:, 2:]).mean()
    assert abs(both - 0.15**2) < 5 * np.sqrt(0.02 / hidden.size)


@pytest.mark.parametrize("sentinels", [11, 100])
def test_neither_rows_nor_sentinels_overflow(sentinels, corpus, read):
    """At the least that there must be of both."""
    document = np.random.RandomState(0).randint(3, 259, 64 * 1000)
    vocabulary = seqio.ByteVocabulary(extra_ids=sentinels)
    features = {"targets": seqio.Feature(vocabulary, add_eos=True)}
    objective = IidDenoising()
    lengths = {"inputs": 65, "targets": 25}
    full, text = 0, []
    for example in read(objective.bind(corpus(documents=[document], output_features=features)), lengths):
        assert 3 <= len(example["targets"]) <= 25 and len(example["inputs"]) <= 65
        marks = example["targets"][example["targets"] > 258]
        np.testing.assert_array_equal(marks, 258 + sentinels - np.arange(len(marks)))
        assert len(marks) <= sentinels
        full += len(marks) == sentinels or (sentinels == 100 and len(example["targets"]) == 25)
        text += objective.complete(example["inputs"], example["targets"], vocabulary)
    assert full, "no example met a limit"
    # One sentinel too many would be a token of text, and found in it.
    np.testing.assert_array_equal(text, document)


def test_every_chunk_hides_something(corpus, read):
    task = IidDenoising(noise_density=0.001).bind(corpus(documents=[np.arange(3, 203)]))
    examples = read(task, LENGTHS)
    assert [hidden_by(example).sum() for example in examples] == [1] * len(examples)


def test_bad_settings_are_refused(vocabulary):
    with pytest.raises(InputError, match="noise_density must be between 0 and 1, not 1"):
        IidDenoising(noise_density=1)
    with pytest.raises(InputError, match="IidDenoising.drop must be True or False, not 1"):
        IidDenoising(drop=1)
    with pytest.raises(InputError, match=r"lengths\['targets'\] is 10, but .* set it to 25"):
        IidDenoising().check({"inputs": 65, "targets": 10}, vocabulary)
    with pytest.raises(InputError, match="hides about 131 spans .* has 100 sentinels: give it extra_ids=163"):
        IidDenoising().check({"inputs": 1024, "targets": 512}, vocabulary)
    IidDenoising(drop=True).check({"inputs": 1024, "targets": 512}, vocabulary)
    with pytest.raises(InputError, match="needs sentinels, but the vocabulary has none"):
        IidDenoising().check(LENGTHS, seqio.ByteVocabulary())
    IidDenoising(drop=True).check(LENGTHS, seqio.ByteVocabulary())
