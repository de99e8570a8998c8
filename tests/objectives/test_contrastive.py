"""Contrastive pairs on whole tasks, and the loss: by hand, on eight devices and in chunks."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx

from pretrain import losses
from pretrain.errors import InputError
from pretrain.objectives import Contrastive
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state

LENGTHS = {"inputs": 41, "targets": 41}
SENTENCES = "One is here. Two are there! Are three? Four."


def text_of(tokens) -> bytes:
    return bytes((np.asarray(tokens)[:-1] - 3).tolist())


def test_crops_are_stretches_of_one_chunk(corpus, read):
    objective = Contrastive(deletion=0.0)
    chunk = np.random.RandomState(0).permutation(256)[:80] + 3
    assert objective.chunk_length(LENGTHS) == 80
    examples = read(objective.bind(corpus(documents=[chunk] * 400)), LENGTHS)
    sizes, starts = [], []
    for example in examples:
        for name in ("inputs", "targets"):
            crop = example[name][:-1]
            start = int(np.flatnonzero(chunk == crop[0])[0])
            np.testing.assert_array_equal(crop, chunk[start : start + len(crop)])
            sizes.append(len(crop))
            starts.append(start / (80 - len(crop)))
    assert min(sizes) == 8 and max(sizes) == 40 and abs(np.mean(sizes) - 24) < 5 * 9.3 / np.sqrt(800)
    assert abs(np.mean(starts) - 0.5) < 5 * 0.3 / np.sqrt(800)
    both = np.corrcoef(sizes[::2], sizes[1::2])[0, 1]
    assert abs(both) < 5 / np.sqrt(400), "the two crops are drawn for themselves"


def test_a_share_of_a_crop_is_left_out(corpus, read):
    chunk = np.arange(80) + 3
    objective = Contrastive(deletion=0.25, crop_min=0.5)
    for example in read(objective.bind(corpus(documents=[chunk] * 50)), LENGTHS):
        crop = example["inputs"][:-1]
        assert len(crop) == 40 - 10 and (np.diff(crop) > 0).all()


def test_cloze_takes_a_sentence_out_of_its_context(corpus, read):
    document = np.frombuffer(SENTENCES.encode(), np.uint8).astype(np.int32) + 3
    task = Contrastive(pairs="cloze").bind(corpus(documents=[document] * 600))
    counts, kept = {}, 0
    for example in read(task, {"inputs": 41, "targets": 60}):
        sentence, context = text_of(example["inputs"]), text_of(example["targets"])
        counts[sentence] = counts.get(sentence, 0) + 1
        if context == SENTENCES.encode():
            kept += 1
        else:
            assert SENTENCES.encode().replace(sentence, b"", 1) == context
    assert set(counts) == {b"One is here. ", b"Two are there! ", b"Are three? ", b"Four."}
    assert max(abs(np.array(list(counts.values())) / 600 - 0.25)) < 5 * np.sqrt(0.19 / 600)
    assert abs(kept / 600 - 0.1) < 5 * np.sqrt(0.09 / 600)


def test_given_features_are_the_pairs(vocabulary, read):
    def source(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors({"inputs": tf.range(3, 60), "targets": tf.range(70, 75)})

    feature = seqio.Feature(vocabulary, add_eos=True)
    task = seqio.Task(
        "given",
        source=seqio.FunctionDataSource(source, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"inputs": feature, "targets": feature},
    )
    (example,) = read(Contrastive(pairs="features").bind(task), LENGTHS)
    assert example["inputs"].tolist() == [*range(3, 43), 1]
    assert example["targets"].tolist() == [*range(70, 75), 1]


def vectors(seed: int, rows=12, size=5):
    x = np.random.RandomState(seed).normal(size=(rows, size)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_a_softmax_over_the_batch(symmetric):
    left, right, real = vectors(0), vectors(1), np.arange(12) < 10
    left[3] = right[3]
    alike = losses.pair_cross_entropy(left, np.tile(right[:1], (12, 1)), real, jnp.float32(8.0))
    assert alike.correct == 0, "where all are alike, none is found"
    sums = losses.pair_cross_entropy(left, right, real, jnp.float32(8.0), symmetric=symmetric)
    logits = 8 * left[:10].astype(np.float64) @ right[:10].T
    ways = [logits, logits.T] if symmetric else [logits]
    nll = [np.log(np.exp(way).sum(1)) - np.diag(way) for way in ways]
    np.testing.assert_allclose(sums.loss, np.mean(nll, axis=0).sum(), rtol=1e-5)
    correct = [(way.argmax(1) == np.arange(10)).sum() for way in ways]
    np.testing.assert_allclose(sums.correct, np.mean(correct))
    assert sums.weight == 10 and sums.nll == sums.loss


@pytest.fixture
def pairs():
    """A batch of pairs of several lengths, the last row padding."""
    random = np.random.RandomState(3)
    batch = {}
    for side, length in (("left", 16), ("right", 24)):
        sizes = random.randint(4, length + 1, 8) * (np.arange(8) < 7)
        inside = np.arange(length) < sizes[:, None]
        batch[f"{side}_encoder_input_tokens"] = (random.randint(3, 64, (8, length)) * inside).astype(np.int32)
        batch[f"{side}_encoder_segment_ids"] = inside.astype(np.int32)
        batch[f"{side}_encoder_positions"] = (np.arange(length) * inside).astype(np.int32)
    return batch


def value_and_gradient(config, objective, batch, mesh_config=None):
    rules = sharding.Rules()
    mesh = mesh_config and mesh_config.build()
    with sharding.layout(mesh, rules) if mesh else contextlib.nullcontext():
        graph = state.graph(config)

        def loss(params, batch):
            sums = objective.loss(nnx.merge(graph, params), batch, None)
            return sums.loss / sums.weight

        params = jax.jit(lambda: state.init_params(config, 0))()
        if mesh:
            batch = jax.device_put(batch, sharding.named(mesh, rules, ("batch", "length")))
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, batch))


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), one, other)


MESHES = [{"data": 8}, {"fsdp": 8, "data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 8}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_eight_devices_compute_what_one_does(sizes, tiny_config, pairs):
    config = tiny_config("dual_encoder", shared=False, embedding_dim=8)
    objective = Contrastive(symmetric=True)
    one = value_and_gradient(config, objective, pairs)
    assert_same(one, value_and_gradient(config, objective, pairs, MeshConfig(**sizes)))


@pytest.mark.parametrize("sizes", [None, {"data": 2}], ids=str)
def test_chunks_have_the_gradient_of_the_whole_batch(sizes, tiny_config, pairs):
    config = tiny_config("dual_encoder")
    whole = value_and_gradient(config, Contrastive(), pairs)
    mesh = sizes and MeshConfig(**sizes, fsdp=4)
    if sizes:
        pairs = {name: np.concatenate([x] * 2) for name, x in pairs.items()}
        whole = value_and_gradient(config, Contrastive(), pairs)
    chunked = value_and_gradient(config, Contrastive(chunks=2), pairs, mesh)
    assert_same(whole, chunked)


def test_every_other_row_of_the_batch_is_a_wrong_answer(pairs):
    """The gradient reaches all that are real, and no padding."""
    left, right = vectors(0, rows=8), vectors(1, rows=8)
    real = pairs["left_encoder_segment_ids"].max(1) > 0

    every = jax.grad(lambda right: losses.pair_cross_entropy(left, right, real, jnp.float32(3.0)).loss)(right)
    by_hand = sum(
        jax.grad(
            lambda right, i=i: (
                jax.nn.logsumexp(jnp.where(real, 3.0 * left[i] @ right.T, -jnp.inf))
                - 3.0 * left[i] @ right[i]
            )
        )(right)
        for i in range(7)
    )
    np.testing.assert_allclose(every, by_hand, atol=1e-5)
    assert not every[7].any() and (np.abs(every[:7]).max(1) > 0).all()


def test_padding_and_other_rows_do_not_reach_a_vector(tiny_config, pairs):
    config = tiny_config("dual_encoder")
    model = nnx.merge(state.graph(config), state.init_params(config, 0))
    before = model.embed(pairs, "right")
    np.testing.assert_allclose(np.linalg.norm(before[:7], axis=1), 1, rtol=1e-5)
    changed = dict(pairs, right_encoder_input_tokens=pairs["right_encoder_input_tokens"].copy())
    changed["right_encoder_input_tokens"][pairs["right_encoder_segment_ids"] == 0] = 9
    changed["right_encoder_input_tokens"][2, 0] += 1
    moved = np.abs(model.embed(changed, "right") - before).max(1) > 0
    assert moved.tolist() == [False, False, True, False, False, False, False, False]


def test_a_row_of_padding_is_no_pair(tiny_config, pairs):
    """Those that fill up the last batch of an evaluation are neither asked nor answers."""
    config = tiny_config("dual_encoder")
    model = nnx.merge(state.graph(config), state.init_params(config, 0))
    found = Contrastive().loss(model, pairs, None)
    without = Contrastive().loss(model, {name: x[:7] for name, x in pairs.items()}, None)
    assert found.weight == without.weight == 7
    np.testing.assert_allclose(found.loss, without.loss, rtol=1e-5)


def test_towers_are_shared_or_their_own(tiny_config, pairs):
    shared, apart = (tiny_config("dual_encoder", shared=shared) for shared in (True, False))
    sizes = [state.count(state.init_params(config, 0)) for config in (shared, apart)]
    assert sizes[1] == 2 * sizes[0] - 1  # and one temperature
    (_, gradients) = value_and_gradient(apart, Contrastive(), pairs)
    assert set(gradients) == {"left", "right", "log_scale"}
    assert abs(gradients["log_scale"]) > 0
    model = nnx.merge(state.graph(shared), state.init_params(shared, 0))
    np.testing.assert_allclose(model.scale, 1 / 0.05, rtol=1e-5)


def test_what_cannot_be_is_refused(tiny_config, vocabulary, corpus):
    for settings, message in (
        ({"pairs": "crop"}, "pairs must be one of"),
        ({"crop_min": 0.6}, "are shares of a chunk"),
        ({"deletion": 1.0}, r"deletion must be in \[0, 1\), not 1"),
        ({"crop_max": float("nan")}, r"crop_max must be in \(0, 1\], not nan"),
        ({"chunks": 0}, "chunks must be a whole number of at least 1, not 0"),
        ({"z_loss": 1e-4}, "has no label_smoothing, z_loss or loss_chunks"),
        ({"pairs": "features", "crop_min": 0.2}, "crop_min has no effect on the pairs of a task"),
        (
            {"pairs": "features", "join_documents": True},
            "join_documents has no effect on the pairs of a task",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Contrastive(**settings)
    with pytest.raises(InputError, match="cannot be packed"):
        Contrastive().converter(pack=True)
    with pytest.raises(InputError, match="reads 'inputs' and 'targets': add 'inputs'"):
        Contrastive(pairs="features").bind(corpus())
    with pytest.raises(InputError, match="needs the lengths of inputs and targets"):
        Contrastive().check({"inputs": 8}, vocabulary)
    with pytest.raises(InputError, match="temperature=0.0 must be from"):
        tiny_config("dual_encoder", temperature=0.0)
