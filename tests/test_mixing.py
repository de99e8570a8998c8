"""Mixtures of objectives: whose turn it is, what rows carry, what is reported, and exact resume."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

from pretrain import evaluation, losses, metrics, mixing, optim, pipeline
from pretrain.data import rows
from pretrain.errors import InputError
from pretrain.fingerprint import batch_hash, hexadecimal
from pretrain.objectives import CausalLM, MaskedLM, Mixture, Part, PrefixLM, SpanCorruption
from pretrain.run import RunConfig
from pretrain.training import state, step

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)


def corpus(name: str, first: int, vocabulary=VOCABULARY) -> seqio.Task:
    """Documents of tokens from `first` to first + 59, which tell the corpus."""

    def read(split, shuffle_files, seed=None):
        random = np.random.RandomState(0)
        documents = [random.randint(first, first + 60, random.randint(20, 90)).tolist() for _ in range(50)]
        dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents, tf.int32, ragged_rank=1))
        return dataset.map(lambda document: {"targets": document})

    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


PARTS = (
    Part(objective=CausalLM(), rate=3.0),
    Part(objective=SpanCorruption(family="decoder"), task=corpus("other", 103), rate=1.0, weight=0.5),
    Part(objective=PrefixLM(), rate=0.0, name="later"),
)


@pytest.fixture
def make_run(tiny_config):
    def make(*parts, **changes) -> RunConfig:
        settings = {
            "task": corpus("first", 3),
            "objective": Mixture(parts=parts or PARTS),
            "model": tiny_config("decoder", vocab_size=384),
            "optimizer": optim.AdamW(schedule=optim.Constant(peak=1e-3)),
            "lengths": {"targets": 32},
            "steps": 4,
            "batch_size": 8,
            "shuffle_buffer": 10,
        }
        return RunConfig(**{**settings, **changes})

    return make


def part_of_rows(batch) -> list[int]:
    (ids,) = rows.part_ids(batch)
    assert (ids == ids[:, :1]).all()
    return ids[:, 0].tolist()


def hashes(batches, number) -> list[str]:
    return [hexadecimal(batch_hash(batch)) for batch in itertools.islice(batches, number)]


def test_rates_hold_to_a_row_and_rows_are_of_their_part(make_run):
    run = make_run()
    run.check()
    for batch in itertools.islice(pipeline.batches(run), 20):
        parts = part_of_rows(batch)
        assert sorted(parts) == [0] * 6 + [1] * 2
        names = ("target_tokens", "loss_weights", "prefix_mask")
        features = [batch[f"decoder_{name}"] for name in names]
        for part, tokens, weights, prefix in zip(parts, *features, strict=True):
            text = tokens[(tokens > 1) & (tokens < 259)]
            assert (text >= 103).all() == (part == 1) and prefix.any() == (part == 1)
            assert set(weights[weights > 0]) == ({0.5} if part == 1 else {1.0})


def test_rates_change_at_their_steps(make_run):
    causal = Part(objective=CausalLM(), rate=[(0, 1.0), (3, 0.0), (5, 1.0)])
    prefix = Part(objective=PrefixLM(), rate=[(0, 0.0), (3, 1.0)])
    run = make_run(causal, prefix)
    shares = [np.mean(part_of_rows(batch)) for batch in itertools.islice(pipeline.batches(run), 8)]
    assert shares == [0, 0, 0, 1, 1, 0.5, 0.5, 0.5]


def test_parts_of_one_corpus_read_it_in_orders_of_their_own(make_run):
    run = make_run(Part(objective=CausalLM(), name="one"), Part(objective=CausalLM(), name="two"))
    batch = next(pipeline.batches(run))
    of = np.array(part_of_rows(batch))
    one, two = ({row.tobytes() for row in batch["decoder_target_tokens"][of == part]} for part in (0, 1))
    assert len(one) == len(two) == 4 and not one & two


@pytest.mark.parametrize("position", [1, 5])
def test_a_restored_position_goes_on_exactly(position, make_run, tmp_path):
    parts = [dataclasses.replace(PARTS[0], rate=[(0, 3.0), (4, 1.0)]), *PARTS[1:]]
    run = make_run(*parts, pack=True)
    batches = pipeline.batches(run)
    hashes(batches, position)
    batches.snapshot()(tmp_path / "position")
    expected = hashes(batches, 6)
    assert len(set(expected)) == 6
    restored = pipeline.batches(run)
    restored.restore(tmp_path / "position")
    assert hashes(restored, 6) == expected


def test_an_evaluation_reads_every_part_to_its_end_in_turns(make_run):
    run = make_run()
    batches = list(pipeline.batches(run, training=False))
    assert len(set(part_of_rows(batches[0]))) == 3
    used = [batch["decoder_segment_ids"].max(axis=1) > 0 for batch in batches]
    found = np.concatenate([np.array(part_of_rows(b))[own] for b, own in zip(batches, used, strict=True)])

    def alone(part: Part) -> int:
        run = make_run(objective=part.objective, task=part.task or corpus("first", 3))
        batches = pipeline.batches(run, training=False)
        return sum(int((batch["decoder_segment_ids"].max(axis=1) > 0).sum()) for batch in batches)

    assert np.bincount(found).tolist() == [alone(part) for part in PARTS]


def test_sums_are_those_of_each_part_alone(make_run):
    run = make_run()
    batch = next(pipeline.batches(run))
    model = nnx.merge(state.graph(run.model), state.init_params(run.model, 0))
    table = np.ones(384, np.int32)
    sums = step.loss_sums(run.objective, model, batch, None, table)
    of = np.array(part_of_rows(batch))
    for number, name in enumerate(("causal_lm", "span_corruption")):
        own = {key: value[of == number] for key, value in batch.items()}
        expected = losses.token_cross_entropy(model(own), *rows.scored(own))
        for key in ("nll", "correct", "weight"):
            np.testing.assert_allclose(sums[f"{key}/{name}"], getattr(expected, key), rtol=1e-5)
        assert sums[f"rows/{name}"] == (of == number).sum()
    assert sums["weight/later"] == sums["rows/later"] == 0
    figures = metrics.figures(jax.device_get(sums))
    assert figures["rate/causal_lm"] == 0.75 and "loss/later" not in figures
    whole = sum(figures[f"loss/{n}"] * figures[f"tokens/{n}"] for n in ("causal_lm", "span_corruption"))
    np.testing.assert_allclose(figures["loss"], whole / float(sums["weight"]), rtol=1e-5)


def test_shapes_are_known_without_data(make_run):
    run = make_run()
    mesh = run.mesh.build()
    abstract, batch = pipeline.abstract_batch(run, mesh), next(pipeline.batches(run))
    assert {name: (x.shape, x.dtype) for name, x in abstract.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }


def test_what_no_mixture_can_be_is_refused(make_run):
    causal = Part(objective=CausalLM())
    for parts, message in (
        ([], "give a list of parts"),
        ([causal, causal], "has two that are called 'causal_lm'"),
        ([causal, Part(objective=SpanCorruption())], "'span_corruption' is of the encoder_decoder family"),
        ([causal, Part(objective=PrefixLM(z_loss=1e-4))], "Set z_loss on the mixture: its part 'prefix_lm'"),
        ([Part(objective=CausalLM(), rate=0.0)], "are all 0 from step 0 on"),
        ([Part(objective=CausalLM(), rate=[(0, 1.0), (9, 0.0)])], "are all 0 from step 9 on"),
    ):
        with pytest.raises(InputError, match=message):
            Mixture(parts=parts)
    with pytest.raises(InputError, match="Mixture.join_documents has no effect on its parts: set it on each"):
        Mixture(parts=[causal], join_documents=False)
    for settings, message in (
        ({"rate": -1.0}, "rate of causal_lm must be at least 0, not -1.0"),
        ({"rate": "1"}, "rate of causal_lm is '1'; give a number, or pairs"),
        ({"weight": "1"}, "weight of causal_lm must be above 0, not '1'"),
        ({"rate": [(5, 1.0)]}, r"changes at the steps \[5\]: begin with step 0"),
        ({"weight": 0.0}, "weight of causal_lm must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            Part(objective=CausalLM(), **settings)
    with pytest.raises(InputError, match="give an objective"):
        Part(objective="causal_lm")
    other = corpus("small", 3, seqio.ByteVocabulary(extra_ids=10))
    with pytest.raises(InputError, match="Task 'small' has another vocabulary in targets than task 'first'"):
        make_run(causal, Part(objective=PrefixLM(), task=other)).check()
    with pytest.raises(InputError, match="The task of part 'prefix_lm' is 'nowhere'"):
        make_run(causal, Part(objective=PrefixLM(), task="nowhere")).check()
    with pytest.raises(InputError, match="MaskedLM needs the lengths of inputs"):
        Mixture(parts=[Part(objective=MaskedLM())]).check({"targets": 8}, VOCABULARY)


def test_turns_are_the_same_in_tensorflow_and_numpy():
    schedule = mixing.of_rows([dataclasses.replace(PARTS[0], rate=[(0, 1.0), (3, 5.0)]), *PARTS[1:]], 7)
    found = [int(part) for part in mixing.choices(schedule).take(200)]
    assert found == schedule.position(np.arange(200))[0].tolist()


def test_weights_change_neither_bits_per_byte_nor_the_loss(make_run):
    figures = []
    for weight in (1.0, 4.0):
        run = make_run(*(dataclasses.replace(part, weight=weight) for part in PARTS))
        model = nnx.merge(state.graph(run.model), state.init_params(run.model, 0))
        sums = step.loss_sums(run.objective, model, next(pipeline.batches(run)), None, np.ones(384, np.int32))
        figures.append(metrics.figures(jax.device_get(sums)))
    for name in ("loss", "bits_per_byte"):
        np.testing.assert_allclose(figures[0][name], figures[1][name], rtol=1e-5)


def test_a_mixture_is_no_part():
    with pytest.raises(InputError, match="'mixture', a mixture itself: list its parts instead"):
        Mixture(parts=[Part(objective=Mixture(parts=PARTS))])


def test_the_whole_text_is_counted_of_every_part(make_run):
    """A decoder's row holds inputs and targets: both make the text."""
    run = make_run(Part(objective=SpanCorruption(family="decoder")), eval_batches=None)
    assert evaluation.text_entropies(run)["unigram_bits_per_byte"] > 5
