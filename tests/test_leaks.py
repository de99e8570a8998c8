"""No prediction depends on what it must not see: every objective, packed or not, by every way to attend.

Rows come out of the real pipeline. What may be seen is said here anew, of rows and as the papers do, and not
asked of `models/masks.py`. Two things are compared with it, neither of them up to a tolerance: which tokens
have a gradient that is not 0, and what stays the same, bit for bit, when tokens change.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

from pretrain import optim, pipeline
from pretrain.models import backends
from pretrain.objectives import (
    UL2,
    CausalLM,
    Contrastive,
    Denoising,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    Mixture,
    Part,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
    TextToText,
)
from pretrain.objectives.denoising import Masking
from pretrain.run import RunConfig
from pretrain.training import state

VOCABULARY, SIZE = seqio.ByteVocabulary(extra_ids=100), 384
LENGTHS = {"inputs": 24, "targets": 24}
ROWS = 8
# Our kernel for TPUs runs in Pallas's interpreter; XLA has no other for cuDNN's.
ATTENTION = {"plain": {}, "rows": {}, "chunked": {"attention_chunk": 4}, "fused": {}}


def split(objective):
    """Short documents by themselves, of which several fit a row."""
    return dataclasses.replace(objective, join_documents=False)


OBJECTIVES = {
    "SpanCorruption": split(SpanCorruption()),
    "SpanCorruption, decoder": split(SpanCorruption(family="decoder")),
    "CausalLM": split(CausalLM()),
    "CausalLM, joined": CausalLM(),
    "CausalLM, encoder-decoder": split(CausalLM(family="encoder_decoder")),
    "PrefixLM": split(PrefixLM()),
    "PrefixLM, encoder-decoder": split(PrefixLM(family="encoder_decoder")),
    "MaskedLM": split(MaskedLM()),
    "PermutationLM": split(PermutationLM(predicted=0.4)),
    "Denoising": split(Denoising()),
    "IidDenoising": split(IidDenoising()),
    "IidDenoising, drop": split(IidDenoising(drop=True)),
    "FillInTheMiddle": split(FillInTheMiddle()),
    "TextToText": TextToText(),
    "TextToText, decoder": TextToText(family="decoder"),
    # Of its seven denoisers one of each mode: R, X and S.
    "UL2": Mixture(parts=UL2(join_documents=False).parts[::3]),
    "UL2, decoder": Mixture(parts=UL2(family="decoder", join_documents=False).parts[::3]),
    "Mixture": Mixture(
        parts=[
            Part(objective=split(CausalLM())),
            Part(objective=split(SpanCorruption(family="decoder")), weight=0.5),
            Part(objective=FillInTheMiddle()),
        ]
    ),
}


def corpus() -> seqio.Task:
    """Pairs of short texts, most of which leave room for others in a row; some are longer than one."""

    def read(split, shuffle_files, seed=None):
        random = np.random.RandomState(0)
        sizes = [random.randint(3, 8, 400), np.where(np.arange(400) % 40, random.randint(3, 8, 400), 60)]
        columns = [[random.randint(3, 259, size).tolist() for size in column] for column in sizes]
        columns = [tf.ragged.constant(column, tf.int32, ragged_rank=1) for column in columns]
        dataset = tf.data.Dataset.from_tensor_slices(tuple(columns))
        return dataset.map(lambda inputs, targets: {"inputs": inputs, "targets": targets})

    feature = seqio.Feature(VOCABULARY, add_eos=True)
    return seqio.Task(
        "corpus",
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"inputs": feature, "targets": feature},
    )


def rows_of(objective, config, pack: bool) -> dict[str, np.ndarray]:
    """A batch of the real pipeline."""
    names = {"decoder": ["targets"], "encoder": ["inputs"], "two_stream": ["inputs"]}
    run = RunConfig(
        task=corpus(), objective=objective, model=config, steps=1, batch_size=ROWS, shuffle_buffer=10,
        optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-3)), pack=pack,
        lengths={name: LENGTHS[name] for name in names.get(objective.family, LENGTHS)},
    )  # fmt: skip
    return next(pipeline.batches(run))


@pytest.fixture(autouse=True)
def every_backend_on_a_cpu(monkeypatch):
    monkeypatch.setattr(backends, "HALVED", 8)  # so that `rows` halves causal ones
    interpreted = functools.partial(backends.fused, interpret=True)
    monkeypatch.setitem(backends.BACKENDS, "fused", interpreted)


@functools.cache
def program(config):
    """(row, rows) -> (bool [L, ids], whether an id reaches a feature of the row; features of the rows)."""
    params, graph = state.init_params(config, 0), state.graph(config)
    weights = np.random.RandomState(1).randn(config.embed_dim)  # a plain sum is constant after some norms
    embedder = ("embedder", "tokens") if config.family == "encoder" else ("embedding",)

    def features(row, noise=0.0):
        own = jax.tree.map(lambda x: x, params)
        table = functools.reduce(lambda tree, name: tree[name], embedder, own)
        table["table"] = table["table"] + noise
        return nnx.merge(graph, own).features({name: x[None] for name, x in row.items()})[0]

    def both(row, rows):
        jacobian = jax.jacrev(lambda noise: features(row, noise) @ weights)(
            jnp.zeros((SIZE, config.embed_dim))
        )
        # One row after the other: beside others it might be summed up in another order.
        return jnp.any(jacobian != 0, axis=-1), jnp.all(jnp.isfinite(jacobian)), jax.lax.map(features, rows)

    return jax.jit(both)


def input_names(row) -> list[str]:
    return sorted(name for name in row if name.endswith("_input_tokens"))


def may_be_seen(row) -> dict[str, np.ndarray]:
    """bool [L, M] by input: whether the prediction at a position may depend on the token at another."""
    if "encoder_order" in row:
        # XLNet: of its own text, what comes before it in the order; context has order -1 and comes first.
        segments, order = row["encoder_segment_ids"], row["encoder_order"]
        return {"encoder_input_tokens": same(segments, segments) & (order[:, None] > order[None, :])}
    if "decoder_input_tokens" not in row:
        segments = row["encoder_segment_ids"]
        return {"encoder_input_tokens": same(segments, segments)}
    segments = row["decoder_segment_ids"]
    places = np.arange(len(segments))
    before = places[None, :] <= places[:, None]
    found = {"decoder_input_tokens": same(segments, segments) & (before | in_prefix(row)[None, :])}
    if "encoder_segment_ids" in row:
        found["encoder_input_tokens"] = same(segments, row["encoder_segment_ids"])
    return found


def same(queries, keys) -> np.ndarray:
    return (queries[:, None] == keys[None, :]) & (queries[:, None] > 0)


def in_prefix(row) -> np.ndarray:
    """bool [L]: of a text whose first k tokens are not charged for, the start and those k inputs."""
    found = np.zeros(len(row["decoder_segment_ids"]), bool)
    for segment in range(1, row["decoder_segment_ids"].max(initial=0) + 1):
        own = np.flatnonzero(row["decoder_segment_ids"] == segment)
        free = int((row["decoder_loss_weights"][own] == 0).sum())
        found[own[: free + 1]] = free > 0
    return found


def queries_to_try(segments, charged) -> list[int]:
    """Charged positions: the first and last of the first text, the second and last of the last one."""
    found = []
    for segment in (1, segments.max()):
        own = np.flatnonzero((segments == segment) & charged)
        found += [own[0] if segment == 1 else own[min(1, len(own) - 1)], own[-1]]
    return found


def assert_no_leak(config, row) -> None:
    names, seen = input_names(row), may_be_seen(row)
    assert sorted(seen) == names
    side = "decoder" if "decoder_target_tokens" in row else "encoder"
    segments, charged = row[f"{side}_segment_ids"], row[f"{side}_loss_weights"] > 0
    # Each token an id of its own, so that a gradient tells where it comes from.
    starts = {name: number * SIZE // 2 for number, name in enumerate(names)}
    own = {name: (starts[name] + np.arange(len(row[name]))).astype(np.int32) for name in names}
    # All that a position may not see changes, and all that is only predicted or weighed.
    random, queries, others = np.random.RandomState(2), queries_to_try(segments, charged), [row]
    for query in queries:
        other = {
            name: row[name] + 1 if name.endswith(("_target_tokens", "_loss_weights")) else row[name]
            for name in row
        }
        for name in names:
            other[name] = np.where(seen[name][query], row[name], random.randint(3, 359, len(row[name])))
        others.append({name: x.astype(row[name].dtype) for name, x in other.items()})
    rows = {name: np.stack([other[name] for other in others]) for name in row}
    reached, finite, (before, *after) = jax.device_get(program(config)({**row, **own}, rows))
    assert finite
    for name in names:
        of_input = reached[:, starts[name] : starts[name] + len(row[name])]
        np.testing.assert_array_equal(of_input[segments > 0], seen[name][segments > 0], err_msg=name)
        if name == "decoder_input_tokens":
            # The input at l + 1 is the target at l: no charged position sees its own, nor a later one.
            assert not np.triu(of_input, 1)[charged].any()
    for query, features in zip(queries, after, strict=True):
        np.testing.assert_array_equal(features[query], before[query])
        assert segments.max() == 1 or (features != before).any(), "nothing was changed"


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "not packed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_prediction_depends_on_what_it_may_see_and_on_nothing_else(name, pack, tiny_config):
    objective = OBJECTIVES[name]
    config = tiny_config(objective.family, vocab_size=SIZE)
    batch = rows_of(objective, config, pack)
    side = "decoder" if "decoder_target_tokens" in batch else "encoder"
    texts = batch[f"{side}_segment_ids"].max(1)
    assert (texts == 1).all() if not pack else texts.max() > 1 or "joined" in name
    if side == "decoder":
        assert_shifted(batch)
    # The rows with most texts and with most padding, and one of each part of a mixture.
    parts = batch.pop(f"{side}_part_ids", np.zeros((ROWS, 1)))[:, 0]
    padding = (batch[f"{side}_segment_ids"] == 0).sum(1)
    chosen = {int(texts.argmax()), int(padding.argmax()), *np.unique(parts, return_index=True)[1].tolist()}
    for attention, settings in ATTENTION.items():
        if attention == "fused" and objective.family == "two_stream":
            continue  # it takes no order, and says so
        way = dataclasses.replace(config, attention=attention, **settings)
        for row in sorted(chosen):
            assert_no_leak(way, {name: x[row] for name, x in batch.items()})


def assert_shifted(batch) -> None:
    """The input of a decoder is the target before it, of the same text, or 0: else it would be told."""
    targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    follows = np.zeros(targets.shape, bool)
    follows[:, 1:] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    expected = np.where(follows, np.roll(targets, 1, axis=1), 0)
    np.testing.assert_array_equal(batch["decoder_input_tokens"], expected)


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_vector_depends_on_its_own_text_alone(attention, tiny_config):
    """On no other row of the batch, which the loss compares it with, on no padding, not on the other side."""
    config = tiny_config("dual_encoder", vocab_size=SIZE, attention=attention, **ATTENTION[attention])
    batch = rows_of(Contrastive(), config, pack=False)
    params, graph = state.init_params(config, 0), state.graph(config)
    weights = np.random.RandomState(1).randn(config.embed_dim)
    sides = ("left", "right")
    real = np.stack([batch[f"{side}_encoder_segment_ids"] for side in sides]) > 0
    texts = np.stack([batch[f"{side}_encoder_input_tokens"] for side in sides])
    assert real.any(2).all() and not real.all()

    def vectors(tokens, noise=0.0):
        """[2 B, embed] of the texts of both sides."""
        table = params["left"]["embedder"]["tokens"]["table"] + noise
        left = {**params["left"], "embedder": {"tokens": {"table": table}}}
        rows = {f"{side}_encoder_input_tokens": own for side, own in zip(sides, tokens, strict=True)}
        model = nnx.merge(graph, {**params, "left": left})
        return jnp.concatenate([model.embed({**batch, **rows}, side) for side in sides])

    @jax.jit
    def both(tokens, others):
        nothing = jnp.zeros((SIZE, config.embed_dim))
        jacobian = jax.jacrev(lambda noise: vectors(tokens, noise) @ weights)(nothing)
        return jacobian, jax.lax.map(vectors, others)

    # One text stays as it is, but for its padding, and all the others become other ones.
    random = np.random.RandomState(2).randint(3, 359, texts.shape)
    kept = [(side, row) for side in (0, 1) for row in (0, ROWS - 1)]
    others = []
    for one in kept:
        other = random.copy()
        other[one] = np.where(real[one], texts[one], random[one])
        others.append(other)
    own = np.arange(real.size, dtype=np.int32).reshape(real.shape)
    jacobian, (before, *after) = jax.device_get(both(own, np.stack([texts, *others]).astype(np.int32)))
    assert np.isfinite(jacobian).all()
    reached = np.any(jacobian != 0, axis=-1).reshape(2 * ROWS, 2 * ROWS, -1)
    np.testing.assert_array_equal(
        reached, np.eye(2 * ROWS, dtype=bool)[:, :, None] & real.reshape(2 * ROWS, -1)
    )
    for (side, row), found in zip(kept, after, strict=True):
        np.testing.assert_array_equal(found[side * ROWS + row], before[side * ROWS + row])
        assert (found != before).any(1).sum() == 2 * ROWS - 1


def variants(tokens: np.ndarray) -> tf.RaggedTensor:
    """A chunk, and beside it chunks in each of which another token is a different one."""
    changed = np.where(np.eye(len(tokens), dtype=bool), (tokens - 3 + 1) % 256 + 3, tokens)
    return tf.RaggedTensor.from_tensor(np.concatenate([tokens[None], changed]).astype(np.int32))


def changes(objective) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By feature, bool [tokens]: whether it says what the token is; and the first example's features.

    Every chunk has the same seed, so that the same is done to it.
    """
    tokens = np.random.RandomState(3).randint(100, 126, 40)
    chunks = variants(tokens)
    seeds = tf.tile(tf.constant([[5, 6]], tf.int64), [len(tokens) + 1, 1])
    made = objective.examples(chunks, seeds, {"inputs": 64, "targets": 64}, VOCABULARY)
    lists = {name: x.to_list() for name, x in made.items()}
    return {name: np.array([x != all_[0] for x in all_[1:]]) for name, all_ in lists.items()}, lists


@pytest.mark.parametrize(
    "objective",
    [
        SpanCorruption(noise_density=0.3), SpanCorruption(family="decoder"), IidDenoising(noise_density=0.3),
        IidDenoising(drop=True), PrefixLM(), PrefixLM(family="encoder_decoder"),
        *(part.objective for part in UL2().parts),
    ],
    ids=lambda objective: getattr(objective, "of", objective).name,
)  # fmt: skip
def test_a_token_is_in_the_inputs_or_in_the_targets(objective):
    says, _ = changes(objective)
    np.testing.assert_array_equal(says["inputs"], ~says["targets"])
    assert says["inputs"].any() and says["targets"].any()


def test_a_hidden_token_leaves_no_trace_in_the_inputs():
    says, made = changes(MaskedLM(mask_rate=0.5))
    inputs, targets, chosen = (np.array(made[name][0]) for name in ("inputs", "targets", "chosen"))
    np.testing.assert_array_equal(says["inputs"], inputs == targets)
    assert chosen[~says["inputs"]].all() and not says["chosen"].any() and says["targets"].all()
    assert (~says["inputs"]).sum() > 10
    says, made = changes(Denoising(noise=[Masking(rate=0.5)]))
    np.testing.assert_array_equal(~says["inputs"], np.array(made["inputs"][0]) == 358)
    assert (~says["inputs"]).sum() == 20 and says["targets"].all()
