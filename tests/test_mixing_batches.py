"""Mixtures whose parts have batches of their own: one part a step, or one loss that is the sum of all."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

from pretrain import evaluation, metrics, optim, pipeline, planning
from pretrain.bad_steps import BadSteps
from pretrain.benchmarks import data
from pretrain.data import rows
from pretrain.errors import InputError
from pretrain.fingerprint import batch_hash, hexadecimal
from pretrain.inference.generate import generate_tokens
from pretrain.objectives import CausalLM, Contrastive, MaskedLM, Mixture, Part, PrefixLM, SpanCorruption
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.parallel.topologies import Topology
from pretrain.run import RunConfig
from pretrain.training import state, step

MASKED = Part(objective=MaskedLM(join_documents=False), rate=2.0, lengths={"inputs": 48})
PAIRS = Part(objective=Contrastive(), weight=0.5)
TABLE = np.ones(384, np.int32)


def documents(split, shuffle_files, seed=None):
    random = np.random.RandomState(0)
    tokens = [random.randint(3, 259, random.randint(20, 90)).tolist() for _ in range(50)]
    dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(tokens, tf.int32, ragged_rank=1))
    return dataset.map(lambda document: {"targets": document})


CORPUS = seqio.Task(
    "numbers",
    source=seqio.FunctionDataSource(documents, splits=["train", "validation"]),
    preprocessors=[seqio.CacheDatasetPlaceholder()],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
)


def hashes(batches, number) -> list[str]:
    return [hexadecimal(batch_hash(batch)) for batch in itertools.islice(batches, number)]


@pytest.fixture
def make_run(tiny_config):
    def make(mixes: str, *parts, **changes) -> RunConfig:
        if mixes == "losses":
            parts = [dataclasses.replace(part, rate=1.0) for part in parts or (MASKED, PAIRS)]
        settings = {
            "task": CORPUS,
            "objective": Mixture(parts=parts or (MASKED, PAIRS), mixes=mixes),
            "model": tiny_config("dual_encoder", vocab_size=384, predicts=True),
            "optimizer": optim.AdamW(schedule=optim.Constant(peak=1e-3)),
            "lengths": {"inputs": 16, "targets": 24},
            "steps": 4,
            "batch_size": 8,
            "shuffle_buffer": 10,
            "eval_batches": None,
        }
        return RunConfig(**{**settings, **changes})

    return make


def decoder_run(make_run, tiny_config, **changes) -> RunConfig:
    """Two cross entropies on one decoder, the second of another length."""
    parts = (
        Part(objective=CausalLM(z_loss=1e-3), lengths={"targets": 32}),
        Part(objective=PrefixLM(), weight=0.25),
    )
    model = tiny_config("decoder", vocab_size=384)
    return make_run("losses", *parts, model=model, lengths={"targets": 24}, **changes)


def part_of(batch) -> int:
    (part,) = rows.by_part(batch)
    return part


def model_of(run: RunConfig) -> nnx.Module:
    return nnx.merge(state.graph(run.model), state.init_params(run.model, 0))


def test_a_step_of_one_part_has_its_features_alone(make_run):
    run = make_run("batches")
    run.check()
    batches = list(itertools.islice(pipeline.batches(run), 9))
    assert [part_of(batch) for batch in batches] == [0, 1, 0] * 3
    masked, pairs = batches[:2]
    assert {value.shape for value in masked.values()} == {(8, 48)} and len(masked) == 5
    assert pairs["1/left_encoder_positions"].shape == (8, 16)
    assert pairs["1/right_encoder_positions"].shape == (8, 24) and len(pairs) == 6


def test_rates_of_batches_change_at_their_steps(make_run):
    masked = dataclasses.replace(MASKED, rate=[(0, 1.0), (3, 0.0)])
    pairs = dataclasses.replace(PAIRS, rate=[(0, 0.0), (3, 1.0)])
    batches = itertools.islice(pipeline.batches(make_run("batches", masked, pairs)), 6)
    assert [part_of(batch) for batch in batches] == [0, 0, 0, 1, 1, 1]


def test_a_step_of_all_losses_has_all_features(make_run):
    run = make_run("losses")
    own = rows.by_part(next(pipeline.batches(run)))
    assert set(own) == {0, 1} and own[0]["encoder_loss_weights"].shape == (8, 48)


def test_parts_whose_losses_are_added_read_the_same_text(make_run, tiny_config):
    """Of equal chunks, row by row; parts that take turns read in orders of their own."""
    parts = (Part(objective=CausalLM(), name="one"), Part(objective=CausalLM(), name="two"))
    settings = {"model": tiny_config("decoder", vocab_size=384), "lengths": {"targets": 24}}
    one, two = rows.by_part(next(pipeline.batches(make_run("losses", *parts, **settings)))).values()
    assert (one["decoder_target_tokens"] == two["decoder_target_tokens"]).all()
    first, second = itertools.islice(pipeline.batches(make_run("batches", *parts, **settings)), 2)
    assert (first["0/decoder_target_tokens"] != second["1/decoder_target_tokens"]).any()


@pytest.mark.parametrize("mixes", ["batches", "losses"])
@pytest.mark.parametrize("position", [1, 4])
def test_a_restored_position_goes_on_exactly(mixes, position, make_run, tmp_path):
    run = make_run(mixes)
    batches = pipeline.batches(run)
    hashes(batches, position)
    batches.snapshot()(tmp_path / "position")
    expected = hashes(batches, 5)
    assert len(set(expected)) == 5
    restored = pipeline.batches(run)
    restored.restore(tmp_path / "position")
    assert hashes(restored, 5) == expected


@pytest.mark.parametrize("mixes", ["batches", "losses"])
def test_shapes_are_known_without_data(mixes, make_run):
    run = make_run(mixes)
    abstract = pipeline.abstract_batch(run, run.mesh.build())
    found: dict = {}
    for batch in itertools.islice(pipeline.batches(run), 2):
        found |= {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert {name: (x.shape, x.dtype) for name, x in abstract.items()} == found


def test_the_gradient_of_a_sum_is_the_sum_of_mean_gradients(make_run):
    run = make_run("losses")
    batch = next(pipeline.batches(run))
    params, graph = state.init_params(run.model, 0), state.graph(run.model)

    def mean(params, number: int):
        part = run.objective.parts[number]
        sums = part.objective.loss(nnx.merge(graph, params), rows.by_part(batch)[number], None)
        return sums.loss / sums.weight

    def expected(params):
        return sum(part.weight * mean(params, n) for n, part in enumerate(run.objective.parts))

    def whole(params):
        model, factors = nnx.merge(graph, params), run.objective.factors(batch)
        sums = step.loss_sums(run.objective, model, batch, None, TABLE, factors)
        return sums["loss"] / sums["weight"], sums

    (loss, sums), gradients = jax.value_and_grad(whole, has_aux=True)(params)
    np.testing.assert_allclose(loss, expected(params), rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        gradients,
        jax.grad(expected)(params),
    )
    read = jax.device_get(sums)
    figures = metrics.figures(read, run.objective.added)
    np.testing.assert_allclose(figures["loss"], loss, rtol=1e-5)
    assert figures["rate/contrastive"] == 0.5 and "perplexity" not in figures
    # So few batches that a part has no target: the loss is that of the others.
    without = {**read, "weight/masked_lm": 0.0, "nll/masked_lm": 0.0}
    assert metrics.figures(without, run.objective.added)["loss"] == 0.5 * figures["loss/contrastive"]


def test_accumulation_does_not_change_a_sum_of_losses(make_run, tiny_config):
    run = decoder_run(make_run, tiny_config)
    batch = next(pipeline.batches(run))
    states = []
    for parts in (1, 4):
        programs = step.programs(dataclasses.replace(run, microbatches=parts), TABLE)
        states.append(programs.train_step(programs.init(), batch))
    (one, sums), (other, others) = states
    np.testing.assert_allclose(sums["loss"], others["loss"], rtol=1e-6)
    np.testing.assert_allclose(sums["gradient_norm"], others["gradient_norm"], rtol=1e-5)
    assert sums["weight"] == others["weight"] and sums["z_loss"] > 0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5), one.params, other.params)


def test_a_step_of_one_part_is_that_of_the_part_alone(make_run):
    """Times its weight."""
    run = make_run("batches")
    model = model_of(run)
    for batch in itertools.islice(pipeline.batches(run), 2):
        part = run.objective.parts[part_of(batch)]
        (own,) = rows.by_part(batch).values()
        expected = part.objective.loss(model, own, None)
        sums = step.loss_sums(run.objective, model, batch, None, TABLE)
        np.testing.assert_allclose(sums["loss"], part.weight * expected.loss, rtol=1e-6)
        np.testing.assert_allclose(sums[f"nll/{part.called}"], expected.nll, rtol=1e-6)
        assert sums["weight"] == expected.weight and sums[f"rows/{part.called}"] == 8
        assert not {"perplexity", "bits_per_byte"} & set(metrics.figures(jax.device_get(sums)))
        assert sum(float(value) for name, value in sums.items() if name.startswith("rows/")) == 8


@pytest.mark.parametrize("mixes", ["batches", "losses"])
def test_one_device_and_eight_agree(mixes, make_run):
    run = make_run(mixes)
    batches = list(itertools.islice(pipeline.batches(run), 3))
    found = []
    for mesh in (MeshConfig(), MeshConfig(data=4, fsdp=2)):
        made = mesh.build(jax.devices()[: 1 if mesh == MeshConfig() else 8])
        with sharding.layout(made, run.rules):
            programs = step.programs(run, TABLE)
            now, losses = programs.init(), []
            for batch in batches:
                now, sums = programs.train_step(now, pipeline.to_devices(batch, made, run.rules))
                losses.append(float(sums["loss"] / sums["weight"]))
        found.append((losses, jax.device_get(now.params)))
    np.testing.assert_allclose(*(losses for losses, _ in found), rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *(params for _, params in found))


@pytest.mark.parametrize("mixes", ["batches", "losses"])
def test_an_evaluation_is_that_of_each_part_alone(mixes, make_run):
    run = make_run(mixes)
    mesh = run.mesh.build(jax.devices()[:1])
    params = state.init_params(run.model, 0)

    def evaluated(run: RunConfig) -> dict[str, float]:
        with sharding.layout(mesh, run.rules):
            return evaluation.evaluate(run, step.programs(run, TABLE).eval_step, params, mesh)

    figures = evaluated(run)
    for number, part in enumerate(run.objective.parts):
        alone = dataclasses.replace(run, objective=part.objective, lengths=run.lengths_of(number))
        name = part.called
        if number == 0:  # the noise of the first part is that of an evaluation alone
            np.testing.assert_allclose(figures[f"loss/{name}"], evaluated(alone)["loss"], rtol=1e-5)
        read = sum(int(rows.real(batch).sum()) for batch in pipeline.batches(alone, training=False))
        held = [batch for batch in evaluation.held_out(run) if part_of(batch) == number]
        assert sum(int(rows.real(rows.by_part(batch)[number]).sum()) for batch in held) == read
    if mixes == "losses":
        expected = figures["loss/masked_lm"] + 0.5 * figures["loss/contrastive"]
        np.testing.assert_allclose(figures["loss"], expected, rtol=1e-6)


def test_dropout_of_the_parts_differs(make_run, tiny_config):
    parts = (Part(objective=CausalLM(), name="one"), Part(objective=CausalLM(), name="two"))
    model = tiny_config("decoder", vocab_size=384, dropout=0.3)
    run = make_run("losses", *parts, model=model, lengths={"targets": 24})
    sums = step.loss_sums(
        run.objective, model_of(run), next(pipeline.batches(run)), jax.random.key(0), TABLE, jnp.ones(2)
    )
    assert abs(sums["nll/one"] - sums["nll/two"]) > 1e-3


def test_work_is_counted_part_by_part(make_run):
    run = make_run("losses")
    masked, pairs = run.model.flops({"inputs": 48}), run.model.flops({"inputs": 16, "targets": 24})
    assert run.step_flops() == 8 * (masked + pairs) and run.step_tokens() == 8 * (48 + 40)
    assert make_run("batches").step_tokens() == pytest.approx(8 * (48 * 2 + 40) / 3)
    parts = MASKED, dataclasses.replace(PAIRS, rate=[(0, 0.0), (3, 2.0)])
    changing = make_run("batches", *parts)
    assert changing.step_flops(2) == 8 * masked
    assert changing.step_flops(3) == pytest.approx(8 * (MASKED.rate * masked + 2 * pairs) / (MASKED.rate + 2))


def test_a_position_is_one_in_the_tasks_of_its_parts(make_run, tiny_config):
    """Also where the parts exchange theirs."""
    other = CORPUS.replace(name="others")
    settings = {"model": tiny_config("decoder", vocab_size=384), "lengths": {"targets": 24}}

    def identity(one, two):
        parts = [Part(objective=CausalLM(), task=task, name=name) for name, task in (("a", one), ("b", two))]
        return pipeline.identity(make_run("batches", *parts, **settings), "train")

    assert identity(CORPUS, other) == identity(CORPUS, other) != identity(other, CORPUS)


def test_a_mixture_is_spoken_to_with_the_lengths_of_its_first_part(make_run, tiny_config):
    run = decoder_run(make_run, tiny_config)
    mesh, params = run.mesh.build(jax.devices()[:1]), state.init_params(run.model, 0)
    with sharding.layout(mesh, run.rules):
        (said,) = generate_tokens(
            run, params, mesh, [list(range(3, 31))], max_tokens=4
        )  # 28 of 32; others 24
    assert len(said) <= 4


def test_rows_of_all_parts_are_counted(make_run):
    batch = next(pipeline.batches(make_run("losses")))
    tokens, examples = data._contents(batch)
    segments = [value for name, value in batch.items() if name.endswith("_segment_ids")]
    assert (tokens, examples) == (sum(int((value > 0).sum()) for value in segments), 16)


def test_what_such_mixtures_cannot_be_is_refused(make_run, tiny_config):
    causal, prefix = Part(objective=CausalLM()), Part(objective=PrefixLM())
    for mixes, parts, settings, message in (
        ("turns", [causal, prefix], {}, "Mixture.mixes must be one of"),
        ("batches", [causal], {}, "'batches' needs at least two parts"),
        ("batches", [causal, prefix], {"z_loss": 1e-4}, "Set z_loss on the parts"),
        ("losses", [MASKED, PAIRS], {}, "rates mean nothing: give each part a weight"),
        ("rows", [MASKED], {}, "has lengths of its own, but shares batches"),
        ("rows", [PAIRS], {}, "Set mixes='batches' or mixes='losses'"),
    ):
        with pytest.raises(InputError, match=message):
            Mixture(parts=parts, mixes=mixes, **settings)
    with pytest.raises(InputError, match=r"predicts=True gives it a head for tokens"):
        make_run("batches", model=tiny_config("dual_encoder", vocab_size=384))
    with pytest.raises(InputError, match="SpanCorruption is of the encoder_decoder family"):
        make_run("batches", MASKED, Part(objective=SpanCorruption()))
    with pytest.raises(InputError, match="compares the rows of a batch"):
        run = make_run("batches", microbatches=2)
        run.check_batch(run.mesh.build())
    with pytest.raises(InputError, match="spike is 6.0, but with mixes='batches'"):
        make_run("batches", bad_steps=BadSteps(spike=6.0))
    for parts, message in (
        (
            [dataclasses.replace(PAIRS, objective=Contrastive(chunks=n), name=f"{n}") for n in (2, 3)],
            "of 6, 6 ch",
        ),
        ([dataclasses.replace(MASKED, objective=MaskedLM(loss_chunks=5)), PAIRS], "Part 'masked_lm'.lengths"),
    ):
        run = make_run("batches", *parts)
        with pytest.raises(InputError, match=message):
            run.check_batch(run.mesh.build(jax.devices()[:1]))
    for rate in (None, [0, 1.0], [(0,)], "fast", [(0, "a")], True):
        with pytest.raises(InputError, match="Part.rate of causal_lm"):
            Part(objective=CausalLM(), rate=rate)
    with pytest.raises(InputError, match="give a list of parts"):
        Mixture(parts=causal)
    with pytest.raises(InputError, match="plan one of its parts at a time"):
        planning.plan(make_run("batches"), Topology("cpu:8"))
    with pytest.raises(InputError, match="MaskedLM needs the lengths of inputs"):
        make_run("batches", dataclasses.replace(MASKED, lengths={"targets": 8}), PAIRS).check()
