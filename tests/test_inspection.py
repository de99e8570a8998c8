"""What is shown of a run's data is what the run is fed: every example, every id, and what was cut away."""

import dataclasses

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import inspection, optim
from pretrain.errors import InputError
from pretrain.objectives import (
    CausalLM,
    Contrastive,
    MaskedLM,
    Mixture,
    Part,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
    TextToText,
)
from pretrain.run import RunConfig

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
SIZES = (70, 3, 61, 25, 1, 13, 41, 33, 2, 96, 51, 17)


def corpus(name="corpus", sizes=SIZES):
    random = np.random.RandomState(len(name))
    documents = [random.randint(3, 259, size).tolist() for size in sizes]

    def read(split, shuffle_files, seed=None):
        dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents, tf.int32, ragged_rank=1))
        return dataset.map(lambda document: {"targets": document})

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(VOCABULARY, add_eos=True)},
    )


@pytest.fixture
def make_run(tiny_config):
    def make(objective, lengths, **changes) -> RunConfig:
        return RunConfig(
            task=changes.pop("task", corpus()),
            objective=objective,
            model=tiny_config(objective.family, vocab_size=384),
            optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-3)),
            lengths=lengths,
            **{"steps": 1, "batch_size": 4, "shuffle_buffer": 8, **changes},
        )

    return make


MIXED = Mixture(parts=[Part(objective=CausalLM()), Part(objective=PrefixLM())])


def examples_of(run, split="validation"):
    """What the objective makes of one pass over the split, in order, as tuples of ids."""
    bound = run.objective.bind(run.corpus())
    dataset = bound.get_dataset(dict(run.lengths), split, shuffle=False, seed=run.seed, num_epochs=1)
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("pack", [False, True])
def test_the_examples_of_the_rows_are_those_the_objective_made(make_run, pack):
    run = make_run(SpanCorruption(join_documents=False), {"inputs": 48, "targets": 24}, pack=pack)
    found = inspection.inspect(run, "validation", num_batches=1000)
    shown = [(*e["inputs"].tolist(), -1, *e["targets"].tolist()) for row in found.rows for e in row]
    made = [(*e["inputs"].tolist(), -1, *e["targets"].tolist()) for e in examples_of(run)]
    assert sorted(shown) == sorted(made)
    assert (len(found.rows) < len(made)) == pack
    assert found.truncation is None
    assert found.corpora[0].whole and len(found.corpora[0].tokens) == len(SIZES)


def test_figures_of_packed_rows():
    batch = {
        "encoder_input_tokens": np.array([[5, 6, 7, 1, 8, 1], [9, 9, 9, 9, 9, 1], [0] * 6]),
        "encoder_segment_ids": np.array([[1, 1, 1, 1, 2, 2], [1] * 6, [0] * 6]),
        "decoder_target_tokens": np.array([[5, 1, 6, 1], [7, 1, 0, 0], [0] * 4]),
        "decoder_loss_weights": np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0] * 4], np.float32),
        "decoder_segment_ids": np.array([[1, 1, 2, 2], [1, 1, 0, 0], [0] * 4]),
    }
    rows = [row for row in inspection.row_examples(batch) if row]
    assert [len(row) for row in rows] == [2, 1]
    stats = inspection.feature_stats(rows, {"inputs": 6, "targets": 4})
    inputs, targets = stats["inputs"], stats["targets"]
    assert inputs.lengths.tolist() == [4, 2, 6] and targets.lengths.tolist() == [2, 2, 2]
    assert (inputs.tokens, inputs.padding, inputs.full, inputs.weight) == (12, 0.0, 1, None)
    assert (targets.tokens, targets.padding, targets.full, targets.weight) == (6, 0.25, 0, 4.0)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("objective", "lengths"),
    [
        (CausalLM(), {"targets": 16}),
        (PrefixLM(), {"targets": 16}),
        (SpanCorruption(), {"inputs": 32, "targets": 16}),
        (MaskedLM(), {"inputs": 16}),
        (PermutationLM(), {"inputs": 16}),
        (MIXED, {"targets": 16}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_family_has_its_figures_and_loses_nothing(make_run, objective, lengths, pack):
    found = inspection.inspect(make_run(objective, lengths, pack=pack), num_batches=2)
    assert found.truncation is None
    assert found.batches == 2 and len(found.rows) == 8
    assert {name: stats.row_length for name, stats in found.features.items()} == lengths
    with_loss = [name for name, stats in found.features.items() if stats.weight is not None]
    assert with_loss == ["targets" if "targets" in lengths else "inputs"]


def test_pairs_have_their_figures(make_run):
    found = inspection.inspect(make_run(Contrastive(), {"inputs": 8, "targets": 9}), num_batches=2)
    assert {name: stats.row_length for name, stats in found.features.items()} == {"inputs": 8, "targets": 9}
    assert found.features["targets"].weight == found.features["targets"].tokens


@pytest.mark.parametrize("mixes", ["batches", "losses"])
def test_parts_with_rows_of_their_own_have_figures_of_their_own(mixes, make_run):
    parts = [Part(objective=CausalLM(), lengths={"targets": 24}), Part(objective=PrefixLM())]
    run = make_run(Mixture(parts=parts, mixes=mixes), {"targets": 16})
    for split in ("train", "validation"):
        found = inspection.inspect(run, split, num_batches=2)
        lengths = {name: stats.row_length for name, stats in found.features.items()}
        assert lengths == {"causal_lm: targets": 24, "prefix_lm: targets": 16}
        lengths = [24, 16]
        for cells, row in zip(found.cells, found.rows, strict=True):
            assert cells["decoder_positions"].shape == (1, lengths[row[0]["part"]])
        first = [int(row[0]["part"]) for row in found.rows[:4]]
        # A step has a row of each in turn; an evaluation, like steps of one part, has part after part.
        assert first == ([0, 1, 0, 1] if (split, mixes) == ("train", "losses") else [0] * 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncut(CausalLM):
    """Leaves documents as long as they are, for SeqIO to trim."""

    def preprocessors(self):
        return (seqio.preprocessors.append_eos,)


def test_what_the_trim_takes_is_counted(make_run):
    run = make_run(Uncut(), {"targets": 20})
    found = inspection.inspect(run, "validation", num_batches=100).truncation
    over = [size + 1 - 20 for size in SIZES if size + 1 > 20]
    assert (found.examples, found.cut, found.lost) == (12, {"targets": len(over)}, {"targets": sum(over)})


def test_what_pairs_lose_is_counted(make_run):
    def read(split, shuffle_files, seed=None):
        sizes = tf.data.Dataset.from_tensor_slices(([10, 30, 5], [4, 6, 40]))
        return sizes.map(
            lambda inputs, targets: {"inputs": tf.range(3, 3 + inputs), "targets": tf.range(3, 3 + targets)}
        )

    feature = seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)
    pairs = seqio.Task(
        "pairs",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"inputs": feature, "targets": feature},
    )
    run = make_run(TextToText(), {"inputs": 16, "targets": 8}, task=pairs, batch_size=3)
    found = inspection.inspect(run, "validation", num_batches=1).truncation
    assert (found.cut, found.lost) == ({"inputs": 1, "targets": 1}, {"inputs": 15, "targets": 33})
    parts = [Part(objective=TextToText(), name=name) for name in ("one", "two")]
    mixed = make_run(
        Mixture(parts=parts, mixes="batches"), {"inputs": 16, "targets": 8}, task=pairs, batch_size=3
    )
    assert inspection.inspect(mixed, "validation", num_batches=1).truncation is None


def test_training_counts_the_documents_read_so_far(make_run):
    run = make_run(CausalLM(), {"targets": 16}, shuffle_buffer=4, batch_size=2)
    (stats,) = inspection.inspect(run, num_batches=1).corpora
    # Two examples in the batch and four in the buffer are 96 tokens: the first three documents hold them.
    assert stats.tokens.tolist() == stats.bytes.tolist() == list(SIZES[:3])
    assert not stats.whole


def test_a_mixture_has_an_entry_for_each_task_by_its_rate(make_run):
    mixture = seqio.Mixture("both", tasks=[(corpus("a", (10,) * 300), 3.0), (corpus("bb", (10,) * 300), 1.0)])
    run = make_run(CausalLM(), {"targets": 16}, task=mixture)
    a, b = inspection.corpus_stats(run, "train", training=True, tokens=800)
    assert (a.task, b.task, len(a.tokens), len(b.tokens)) == ("a", "bb", 60, 20)
    found = inspection.inspect(run, num_batches=1)
    assert found.truncation is None and len(found.corpora) == 2


def test_a_split_that_is_not_there_is_named(make_run):
    with pytest.raises(InputError, match="no split 'test'; it has train, validation"):
        inspection.inspect(make_run(CausalLM(), {"targets": 16}), "test")


def test_nothing_reaches_the_terminal_that_acts_on_it():
    everything = "".join(map(chr, range(0x3000)))
    shown = inspection.visible(everything).replace("↵\n", "")
    assert all(character.isprintable() for character in shown)
    assert inspection.visible("a é 中 [bold]") == "a é 中 [bold]"
