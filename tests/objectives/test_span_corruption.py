"""Span corruption on whole tasks: T5's lengths, nothing lost, noise that differs by shard and epoch."""

import numpy as np
import pytest
import seqio
import t5.data.preprocessors as t5

from pretrain.errors import InputError
from pretrain.objectives import SpanCorruption
from pretrain.objectives.span_corruption import merge_spans

LENGTHS = {"inputs": 64, "targets": 32}


def _merged(examples, vocabulary) -> list[tuple[np.ndarray, np.ndarray]]:
    return [merge_spans(example["inputs"], example["targets"], vocabulary) for example in examples]


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("settings", [{}, {"noise_density": 0.5, "mean_span_length": 1.0}])
def test_inputs_and_targets_hold_every_token_once(join, settings, corpus, documents, vocabulary, read):
    lengths = {"inputs": 64, "targets": 64}
    objective = SpanCorruption(join_documents=join, **settings)
    examples = read(objective.bind(corpus()), lengths)
    tokens = [tokens for tokens, _ in _merged(examples, vocabulary)]
    np.testing.assert_array_equal(np.concatenate(tokens), np.concatenate(documents))
    chunk = objective.tokens_length(64)
    if join:
        assert {len(tokens) for tokens in tokens[:-1]} == {chunk}
    else:
        sizes = [min(chunk, len(doc) - start) for doc in documents for start in range(0, len(doc), chunk)]
        assert [len(tokens) for tokens in tokens] == sizes
    assert all(example["inputs"][-1] == example["targets"][-1] == vocabulary.eos_id for example in examples)


def test_full_chunks_fill_the_inputs_and_have_t5s_counts(corpus, vocabulary, read):
    examples = read(SpanCorruption().bind(corpus()), {"inputs": 512, "targets": 114})
    for example in examples[:-1]:
        assert len(example["inputs"]) == 512 and len(example["targets"]) == 114
        assert example["targets"][0] == vocabulary.vocab_size - 1
    for tokens, is_noise in _merged(examples[:-1], vocabulary):
        assert len(tokens) == 568 and is_noise.sum() == 85
        assert (np.diff(is_noise.astype(int)) == 1).sum() == 28


@pytest.mark.parametrize("density", [0.1, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("mean", [1.0, 2.5, 3.0, 8.0])
def test_no_chunk_overflows_and_full_ones_are_as_long_as_t5s(density, mean):
    objective = SpanCorruption(noise_density=density, mean_span_length=mean)
    for inputs in (3, 4, 7, 20, 64, 100, 512):
        tokens = objective.tokens_length(inputs)
        _, targets = objective.corrupted_lengths(tokens)
        for shorter in range(2, tokens + 1, max(1, tokens // 40)):
            lengths = objective.corrupted_lengths(shorter)
            assert lengths[0] <= inputs and lengths[1] <= targets
        if inputs >= 64:
            t5_tokens, t5_targets = t5.random_spans_helper(
                inputs_length=inputs,
                noise_density=density,
                mean_noise_span_length=mean,
                extra_tokens_per_span_inputs=1,
                extra_tokens_per_span_targets=1,
            )
            assert tokens == t5_tokens
            assert targets == t5_targets or (density == 0.5 and targets < t5_targets)


def test_where_t5s_rounding_overflows_its_inputs_a_chunk_is_one_shorter():
    objective = SpanCorruption()
    overflowing = []
    for inputs in range(3, 2000):
        tokens, _ = t5.random_spans_helper(
            inputs_length=inputs,
            noise_density=0.15,
            mean_noise_span_length=3.0,
            extra_tokens_per_span_inputs=1,
            extra_tokens_per_span_targets=1,
        )
        if objective.corrupted_lengths(tokens)[0] > inputs:
            overflowing.append(inputs)
            assert objective.tokens_length(inputs) < tokens
            assert objective.corrupted_lengths(objective.tokens_length(inputs))[0] <= inputs
    assert overflowing


@pytest.mark.parametrize("join", [True, False])
def test_shards_read_disjoint_documents_with_noise_of_their_own(join, corpus, vocabulary, read):
    document = np.random.RandomState(0).randint(3, 259, 300)
    task = SpanCorruption(join_documents=join).bind(corpus(documents=[document] * 4))
    noise = []
    for index in range(2):
        examples = read(task, LENGTHS, shard_info=seqio.ShardInfo(index, 2))
        tokens, is_noise = (
            np.concatenate(parts) for parts in zip(*_merged(examples, vocabulary), strict=True)
        )
        np.testing.assert_array_equal(tokens, np.concatenate([document] * 2))
        noise.append(is_noise)
    # The same text in both shards, 15% of it noise in each: only where the noise lies can differ.
    assert 0.05 < (noise[0] != noise[1]).mean() < 2 * 0.15


@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_cover_every_document_once(shuffle, corpus, documents, vocabulary, read):
    short = [document[:50] for document in documents if len(document)]
    task = SpanCorruption(join_documents=False).bind(corpus(documents=short))
    found = []
    for index in range(3):
        examples = read(task, LENGTHS, shuffle=shuffle, shard_info=seqio.ShardInfo(index, 3))
        found += [tokens.tolist() for tokens, _ in _merged(examples, vocabulary)]
    assert sorted(found) == sorted(document.tolist() for document in short)


def test_shards_of_files_shuffled_with_one_seed_cover_every_document_once(vocabulary, read, tmp_path):
    lines = [f"document {number} of this corpus" for number in range(40)]
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines[number::4]))

    def tokens(dataset):
        return dataset.map(lambda line: {"targets": vocabulary.encode_tf(line)})

    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")})
    corpus = seqio.Task(
        "lines", source, preprocessors=[tokens], output_features={"targets": seqio.Feature(vocabulary)}
    )
    bound = SpanCorruption(join_documents=False).bind(corpus)
    found = []
    for index in range(2):
        examples = read(bound, LENGTHS, shuffle=True, seed=3, shard_info=seqio.ShardInfo(index, 2))
        found += [vocabulary.decode(tokens.tolist()) for tokens, _ in _merged(examples, vocabulary)]
    assert sorted(found) == sorted(lines)


def test_every_epoch_has_noise_of_its_own(corpus, vocabulary, read):
    document = np.random.RandomState(0).randint(3, 259, 300)
    task = SpanCorruption(join_documents=False).bind(corpus(documents=[document]))
    merged = _merged(read(task, LENGTHS, num_epochs=2), vocabulary)
    first, second = (merged[: len(merged) // 2], merged[len(merged) // 2 :])
    for (tokens, noise), (same_tokens, other_noise) in zip(first, second, strict=True):
        np.testing.assert_array_equal(tokens, same_tokens)
        assert len(tokens) < 60 or (noise != other_noise).any(), "of several spans, all in the same place"


def test_an_exception_while_a_graph_is_built_changes_nothing_after_it(corpus, read):
    def broken(dataset):
        raise KeyError

    task = SpanCorruption().bind(corpus())
    before = read(task, LENGTHS)
    failing = seqio.Task(
        "failing", task.source, preprocessors=[broken], output_features=task.corpus.output_features
    )
    with pytest.raises(KeyError):
        read(SpanCorruption().bind(failing), LENGTHS)
    after = read(task, LENGTHS)
    for example, same in zip(before, after, strict=True):
        np.testing.assert_array_equal(example["inputs"], same["inputs"])


def test_a_feature_without_eos_gets_none(corpus, documents, vocabulary, read):
    features = {"targets": seqio.Feature(vocabulary, add_eos=False)}
    examples = read(SpanCorruption().bind(corpus(output_features=features)), LENGTHS)
    assert not any((example["inputs"] == vocabulary.eos_id).any() for example in examples)
    merged = np.concatenate([tokens for tokens, _ in _merged(examples, vocabulary)])
    np.testing.assert_array_equal(merged, np.concatenate(documents))


def test_an_id_0_or_eos_inside_a_document_survives_packing(corpus, vocabulary):
    document = np.tile([0, 1, 7, 0, 0, 1], 60)
    objective = SpanCorruption()
    task = objective.bind(corpus(documents=[document]))
    examples = task.get_dataset(LENGTHS, "train", shuffle=False, seed=0)
    found = []
    for row in objective.converter(pack=True)(examples, LENGTHS).as_numpy_iterator():
        for segment in range(1, row["encoder_segment_ids"].max() + 1):
            inputs = row["encoder_input_tokens"][row["encoder_segment_ids"] == segment]
            targets = row["decoder_target_tokens"][row["decoder_segment_ids"] == segment]
            found.append(merge_spans(inputs, targets, vocabulary)[0])
    assert sum(map(len, found)) == len(document)
    np.testing.assert_array_equal(np.bincount(np.concatenate(found)), np.bincount(document))


def test_merging_what_a_model_predicted(vocabulary):
    top = vocabulary.vocab_size - 1
    inputs = [9, top, 7, top - 1, 8, top - 2, 1]
    # Something before any sentinel, the second span missing, the third before the first and named twice.
    targets = [5, 5, top - 2, 4, top, 3, 3, top - 2, 6]
    tokens, is_noise = merge_spans(inputs, targets, vocabulary)
    assert tokens.tolist() == [9, 3, 3, 7, 8, 4]
    assert is_noise.tolist() == [False, True, True, False, False, True]
    assert merge_spans([], [], vocabulary)[0].tolist() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_density": 0.0}, "noise_density must be between 0 and 1, not 0.0"),
        ({"noise_density": 1.0}, "noise_density must be between 0 and 1, not 1.0"),
        ({"mean_span_length": 0.5}, "mean_span_length must be at least 1, not 0.5"),
        ({"noise_density": 0.6, "mean_span_length": 1.0}, r"use mean_span_length >= 1.5\."),
        ({"noise_density": 0.9, "mean_span_length": 3.0}, r"use mean_span_length >= 9.01\."),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        SpanCorruption(**settings)


def test_targets_that_are_too_short(vocabulary):
    SpanCorruption().check({"inputs": 512, "targets": 114}, vocabulary)
    with pytest.raises(InputError, match=r"lengths\['targets'\] is 113.* 568 tokens .*set it to 114\."):
        SpanCorruption().check({"inputs": 512, "targets": 113}, vocabulary)


def test_more_spans_than_sentinels(vocabulary):
    with pytest.raises(
        InputError, match=r"128 spans .* 100 sentinels: .*<= 403, mean_span_length >= 4\.1, or extra_ids=128"
    ):
        SpanCorruption(noise_density=0.5).check({"inputs": 512, "targets": 512}, vocabulary)
    with pytest.raises(InputError, match="the vocabulary has none: give it extra_ids=28"):
        SpanCorruption().check({"inputs": 512, "targets": 114}, seqio.ByteVocabulary())


@pytest.mark.parametrize(("density", "inputs"), [(0.5, 512), (0.15, 2048), (0.3, 1024)])
def test_what_the_message_about_sentinels_proposes_is_just_enough(density, inputs, vocabulary):
    def check(inputs: int, **settings) -> None:
        objective = SpanCorruption(noise_density=density, **settings)
        objective.check({"inputs": inputs, "targets": 9999}, vocabulary)

    with pytest.raises(InputError) as error:
        check(inputs)
    words = str(error.value).replace(",", "").split()
    most = int(words[words.index("<=") + 1])
    least = float(words[words.index(">=") + 1])
    check(most)
    check(inputs, mean_span_length=least)
    with pytest.raises(InputError, match="100 sentinels"):
        check(most + 1)
    with pytest.raises(InputError, match="100 sentinels"):
        check(inputs, mean_span_length=least - 0.1)


def test_lengths_are_checked_when_the_graph_is_built(corpus):
    with pytest.raises(InputError, match="set it to"):
        SpanCorruption().bind(corpus()).get_dataset({"inputs": 64, "targets": 5}, "train")
