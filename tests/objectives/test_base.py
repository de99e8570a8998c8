"""Binding a corpus: what a bound task keeps, and what it does differently from SeqIO's."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import seqio
import tensorflow as tf

import pretrain.data
import pretrain.objectives
from pretrain.data import groups
from pretrain.errors import InputError
from pretrain.objectives import CausalLM, PrefixLM, SpanCorruption
from pretrain.objectives.base import Objective

LENGTHS = {"inputs": 64, "targets": 32}
OBJECTIVES = [
    (SpanCorruption(), {"inputs": 64, "targets": 32}),
    (SpanCorruption(join_documents=False), {"inputs": 64, "targets": 32}),
    (CausalLM(), {"targets": 64}),
    (PrefixLM(), {"targets": 64}),
    (PrefixLM(family="encoder_decoder", join_documents=False), {"inputs": 64, "targets": 32}),
]
parametrize = pytest.mark.parametrize(("objective", "lengths"), OBJECTIVES)


def _assert_same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert sorted(row) == sorted(other)
        for name in row:
            np.testing.assert_array_equal(row[name], other[name])


@parametrize
@pytest.mark.parametrize(("pack", "num_epochs"), [(True, 1), (True, None), (False, 1)])
def test_every_objective_makes_rows(objective, lengths, pack, num_epochs, corpus):
    task = objective.bind(corpus())
    examples = task.get_dataset(lengths, "train", shuffle=True, seed=0, num_epochs=num_epochs)
    rows = list(objective.converter(pack)(examples, lengths).take(12).as_numpy_iterator())
    assert rows
    for row in rows:
        for name, values in row.items():
            assert values.shape == (lengths["inputs" if name.startswith("encoder") else "targets"],), name
        assert row["decoder_loss_weights"].sum() > 0
        np.testing.assert_array_equal(row["decoder_loss_weights"][row["decoder_segment_ids"] == 0], 0)
        assert row["decoder_segment_ids"].max() == 1 or pack


def test_nothing_is_trimmed_in_silence(corpus):
    class TooLong(CausalLM):
        def chunk_length(self, lengths):
            return lengths["targets"] + 1

    lengths = {"targets": 64}
    task = TooLong().bind(corpus())
    for bound in (task, TooLong().bind(seqio.Mixture("mix", [(corpus(), 1.0)]))):
        examples = bound.get_dataset(lengths, "train", shuffle=False, seed=0)
        assert len(next(examples.as_numpy_iterator())["targets"]) == 65
        with pytest.raises(tf.errors.InvalidArgumentError, match="targets must be cut"):
            list(task.objective.converter(pack=False)(examples, lengths))


class OneByOne(SpanCorruption):
    """An objective that says `example` and not `examples`."""

    def example(self, tokens, seed, lengths, vocabulary):
        assert seed.shape == [2]
        inputs = tokens
        if tf.size(tokens) > 1:  # of a tensor, as TensorFlow's autograph allows
            inputs = tf.random.experimental.stateless_shuffle(tokens, seed)
        return {"inputs": inputs, "targets": tokens[: tf.size(tokens) // 2]}

    examples = Objective.examples


def test_examples_are_made_one_by_one_where_an_objective_says_so(corpus, documents, read):
    lengths = {"inputs": 64, "targets": 64}
    examples = read(OneByOne().bind(corpus()), lengths)
    everything = np.concatenate(documents)
    chunk = OneByOne().tokens_length(64)
    assert len(examples) == -(-len(everything) // chunk)
    for number, example in enumerate(examples):
        tokens = everything[number * chunk : (number + 1) * chunk]
        np.testing.assert_array_equal(example["targets"], [*tokens[: len(tokens) // 2], 1])
        np.testing.assert_array_equal(np.sort(example["inputs"][:-1]), np.sort(tokens))
        assert example["inputs"][:-1].tolist() != tokens.tolist()


@parametrize
@pytest.mark.parametrize("pack", [True, False])
def test_examples_do_not_know_how_many_are_made_together(objective, lengths, pack, corpus, monkeypatch):
    def read(size):
        monkeypatch.setattr(groups, "size", lambda tokens: size)
        examples = objective.bind(corpus()).get_dataset(lengths, "train", shuffle=False, seed=0, num_epochs=2)
        rows = objective.converter(pack)(examples, lengths)
        return list(examples.as_numpy_iterator()), list(rows.as_numpy_iterator())

    for one, other in zip(read(3), read(1000), strict=True):
        _assert_same(one, other)


@parametrize
def test_documents_of_one_length_are_documents_like_any(objective, lengths, corpus, read):
    """TensorFlow then knows the length, and batches tensors that are not ragged."""
    documents = np.random.RandomState(0).randint(3, 259, (9, 200)).astype(np.int32)

    def source(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": documents})

    known = corpus().replace(source=seqio.FunctionDataSource(source, splits=["train"]))
    expected = read(objective.bind(corpus(documents=list(documents))), lengths)
    _assert_same(read(objective.bind(known), lengths), expected)


def test_no_two_chunks_share_their_noise(corpus, read):
    """Of 300 equal chunks, more than a group, each is hidden in places of its own."""
    objective, lengths = SpanCorruption(), {"inputs": 512, "targets": 114}
    documents = [np.full(300 * objective.tokens_length(512), 40)]
    examples = read(objective.bind(corpus(documents=documents)), lengths)
    assert len({example["inputs"].tobytes() for example in examples}) == len(examples) == 300


@pytest.mark.parametrize(
    "made", [lambda chunks: {"inputs": chunks}, lambda chunks: dict.fromkeys(LENGTHS, chunks.to_tensor())]
)
def test_what_an_objective_makes_must_be_what_it_says(made, corpus):
    class Wrong(SpanCorruption):
        def examples(self, chunks, seeds, lengths, vocabulary):
            return made(chunks)

    with pytest.raises(
        InputError, match="Wrong makes inputs.* must make its output_features, inputs, targets"
    ):
        Wrong().bind(corpus()).get_dataset(LENGTHS, "train")


@parametrize
def test_the_same_seed_gives_the_same_bits(objective, lengths, corpus, read):
    options = {"shuffle": True, "num_epochs": 2}
    first = read(objective.bind(corpus()), lengths, **options)
    _assert_same(first, read(objective.bind(corpus()), lengths, **options))
    other = read(objective.bind(corpus()), lengths, seed=1, **options)
    assert [row["targets"].tolist() for row in first] != [row["targets"].tolist() for row in other]


@parametrize
def test_a_restored_iterator_continues_bit_for_bit(objective, lengths, corpus, tmp_path):
    task = objective.bind(corpus())
    examples = task.get_dataset(lengths, "train", shuffle=True, seed=0, num_epochs=None)
    dataset = objective.converter(pack=not objective.join_documents)(examples, lengths).batch(2)
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "position"))
    restored = iter(dataset)
    tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
    for _ in range(5):
        _assert_same([next(restored)], [next(iterator)])


def test_a_bound_task_is_the_corpus_with_more_preprocessors(corpus):
    task = corpus(shuffle_buffer_size=7)
    bound = SpanCorruption().bind(task)
    assert isinstance(bound, seqio.Task)
    assert bound.name == "corpus.span_corruption"
    assert bound.source is task.source and bound.splits == task.splits
    assert bound.shuffle_buffer_size == 7 and bound.supports_caching and not bound.requires_caching
    assert sorted(bound.output_features) == ["inputs", "targets"]
    assert bound.name not in seqio.TaskRegistry.names()


def test_a_corpus_without_a_placeholder_binds_too(corpus, read):
    lengths = {"inputs": 64, "targets": 32}
    bound = SpanCorruption().bind(corpus(placeholder=False))
    assert not bound.supports_caching
    _assert_same(read(bound, lengths), read(SpanCorruption().bind(corpus()), lengths))


def test_replace_replaces_in_the_corpus_and_keeps_the_objective(corpus, read):
    lengths = {"inputs": 64, "targets": 40}
    bound = SpanCorruption(noise_density=0.3).bind(corpus())
    replaced = bound.replace(source=corpus(documents=[np.arange(3, 203)]).source, shuffle_buffer_size=5)
    assert replaced.name == bound.name and replaced.shuffle_buffer_size == 5
    assert replaced.objective == bound.objective
    assert 0 < len(read(replaced, lengths)) < len(read(bound, lengths))


def _write_cache(directory: Path, documents) -> None:
    """What `seqio_cache_tasks` leaves behind."""
    directory.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(directory / "train.tfrecord-00000-of-00001")) as writer:
        for document in documents:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=document.tolist()))
            example = tf.train.Example(features=tf.train.Features(feature={"targets": feature}))
            writer.write(example.SerializeToString())
    info = {
        "num_shards": 1,
        "features": {"targets": {"shape": [None], "dtype": "int32"}},
        "seqio_version": "0.0.20",
    }
    (directory / "info.train.json").write_text(json.dumps(info))
    (directory / "stats.train.json").write_text(json.dumps({"examples": len(documents)}))
    (directory / "COMPLETED").write_text("")


def test_a_bound_task_reads_the_cache_of_its_corpus(corpus, documents, read, tmp_path, monkeypatch):
    _write_cache(tmp_path / "corpus", documents[:3])
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path)])
    bound = CausalLM().bind(corpus())
    assert bound.cache_dir == str(tmp_path / "corpus")
    assert bound.get_cached_stats("train") == {"examples": 3}
    rows = read(bound, {"targets": 64}, use_cached=True)
    expected = np.concatenate([[*document, 1] for document in documents[:3]])
    np.testing.assert_array_equal(np.concatenate([row["targets"] for row in rows]), expected)
    mixture = CausalLM().bind(seqio.Mixture("mix", [(corpus(), seqio.mixing_rate_num_examples)]))
    assert mixture.get_rate(mixture.tasks[0]) == 3


def test_a_corpus_without_a_cache_is_named_by_its_own_name(corpus):
    with pytest.raises(AssertionError, match="'corpus' does not exist"):
        CausalLM().bind(corpus()).assert_cached()


def test_a_mixture_keeps_its_rates_and_its_tasks(corpus):
    rates = {"one": 1.0, "two": 3.0}
    inner = seqio.Mixture("inner", [(corpus("one"), 1.0), (corpus("two"), 3.0)])
    mixture = seqio.Mixture("outer", [(inner, 2.0), (corpus("three"), lambda task: 6.0)])
    bound = SpanCorruption().bind(mixture)
    assert bound.name == "outer.span_corruption"
    assert [task.name for task in bound.tasks] == [
        f"{name}.span_corruption" for name in ("one", "three", "two")
    ]
    assert {task.corpus.name: bound.get_rate(task) for task in bound.tasks} == {
        **{name: 2.0 * rate / 4.0 for name, rate in rates.items()},
        "three": 6.0,
    }
    assert bound.total_rate == 8.0


@parametrize
def test_a_bound_mixture_samples_its_tasks_at_their_rates(objective, lengths, corpus):
    tasks = {"low": (np.full(500, 40), 1.0), "high": (np.full(500, 200), 3.0)}
    mixture = seqio.Mixture(
        "mix", [(corpus(name, documents=[doc]), rate) for name, (doc, rate) in tasks.items()]
    )
    examples = objective.bind(mixture).get_dataset(lengths, "train", shuffle=False, seed=0, num_epochs=None)
    # At most a few tokens of every row come from elsewhere: EOS and sentinels.
    is_high = [(example["targets"] == 200).any() for example in examples.take(200).as_numpy_iterator()]
    assert abs(np.mean(is_high) - 0.75) < 0.15
    assert len(list(objective.converter(pack=True)(examples, lengths).take(3))) == 3


def test_loss_is_token_cross_entropy_with_the_objectives_settings():
    losses = pytest.importorskip("pretrain.losses")
    random = np.random.RandomState(0)
    logits = random.randn(2, 4, 8).astype(np.float32)
    batch = {
        "decoder_target_tokens": random.randint(0, 8, (2, 4)),
        "decoder_loss_weights": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32),
    }
    objective = CausalLM(label_smoothing=0.1, z_loss=1e-2)
    model = SimpleNamespace(features=lambda batch, key: logits, logits=lambda features: features)
    sums = objective.loss(model, batch, None)
    expected = losses.token_cross_entropy(
        logits,
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        label_smoothing=0.1,
        z_loss=1e-2,
    )
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(sums, name), value)
    assert float(sums.loss) != float(sums.nll)


def test_a_bound_task_cannot_be_bound_again(corpus):
    bound = SpanCorruption().bind(corpus())
    with pytest.raises(InputError, match=r"'corpus\.span_corruption' has an objective already"):
        CausalLM().bind(bound)
    with pytest.raises(InputError, match="has an objective already"):
        CausalLM().bind(SpanCorruption().bind(seqio.Mixture("mix", [(corpus(), 1.0)])))


def test_a_corpus_needs_targets(corpus, vocabulary):
    with pytest.raises(InputError, match=r"\['text'\], but causal_lm reads 'targets': add 'targets'"):
        CausalLM().bind(corpus(output_features={"text": seqio.Feature(vocabulary)}))
    with pytest.raises(InputError, match="must be int32 of rank 1, tokens, not float32"):
        CausalLM().bind(corpus(output_features={"targets": seqio.Feature(vocabulary, dtype=tf.float32)}))


def test_only_a_task_or_mixture_can_be_bound():
    with pytest.raises(InputError, match="not 'c4': look a name up"):
        CausalLM().bind("c4")


@parametrize
def test_lengths_must_be_those_of_the_family(objective, lengths, vocabulary, corpus):
    objective.check(lengths, vocabulary)
    for wrong in (
        {},
        {**lengths, "extra": 5},
        dict.fromkeys(lengths, 1),
        dict.fromkeys(lengths, "9"),
    ):
        with pytest.raises(InputError, match=type(objective).__name__):
            objective.check(wrong, vocabulary)
    with pytest.raises(InputError, match="needs the lengths of"):
        objective.bind(corpus()).get_dataset(None, "train")


@pytest.mark.parametrize(
    ("settings", "message"), [({"label_smoothing": 1.0}, "label_smoothing"), ({"z_loss": -1.0}, "z_loss")]
)
def test_settings_of_the_loss_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        CausalLM(**settings)


def test_names_and_families():
    objectives = (SpanCorruption(), CausalLM(), PrefixLM(), PrefixLM(family="encoder_decoder"))
    assert [(objective.name, objective.family) for objective in objectives] == [
        ("span_corruption", "encoder_decoder"),
        ("causal_lm", "decoder"),
        ("prefix_lm", "decoder"),
        ("prefix_lm", "encoder_decoder"),
    ]


@pytest.mark.parametrize("package", [pretrain.data, pretrain.objectives])
def test_no_module_imports_jax(package):
    for path in Path(package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("jax", "flax", "optax")], path
