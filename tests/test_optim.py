"""Schedules at their corners; optimizers against optax and against each layer on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import optim
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (optim.Constant(peak=2.0), {0: 2.0, 1000: 2.0}),
        (optim.Constant(peak=2.0, warmup_steps=4), {0: 0.5, 3: 2.0, 9: 2.0}),
        (optim.InverseSquareRoot(), {0: 0.01, 10_000: 0.01, 40_000: 0.005, 1_000_000: 0.001}),
        (optim.Linear(peak=1.0, warmup_steps=10, total_steps=110), {4: 0.5, 10: 1.0, 60: 0.5, 110: 0.0}),
        (optim.Cosine(peak=1.0, warmup_steps=10, total_steps=110, final=0.1), {10: 1.0, 60: 0.55, 200: 0.1}),
        (
            optim.WarmupStableDecay(peak=1.0, warmup_steps=10, total_steps=100, decay_steps=20),
            {4: 0.5, 10: 1.0, 80: 1.0, 90: 0.5, 100: 0.0},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedule_at_its_corners(schedule, points):
    for step, rate in points.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7), step
        assert float(jax.jit(schedule)(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7), step


def tree(seed: int):
    rng = np.random.RandomState(seed)
    return {
        "encoder": {"layers": {"mlp": jnp.asarray(rng.randn(2, 8, 16), jnp.float32)}},
        "decoder": {"layers": {"mlp": jnp.asarray(rng.randn(3, 8, 16), jnp.float32)}},
        "final_norm": {"scale": jnp.asarray(rng.randn(8), jnp.float32)},
        "table": jnp.asarray(rng.randn(12, 8), jnp.float32),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peak": -1e-3}, r"Cosine\.peak is -0\.001; give a number that is not below 0"),
        ({"peak": float("nan")}, r"Cosine\.peak is nan"),
        ({"warmup_steps": -1}, r"Cosine\.warmup_steps is -1"),
        ({"total_steps": None}, r"Cosine\.total_steps is None"),
    ],
)
def test_a_schedule_of_other_numbers_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        optim.Cosine(**{"peak": 1e-3, "total_steps": 100, **changes})


def test_adamw_equals_optax():
    ours = optim.AdamW(schedule=optim.Constant(peak=0.1), weight_decay=0.01, no_decay=(), b2=0.98).build()
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, b2=0.98, weight_decay=0.01))
    params = [tree(0), tree(0)]
    states = [ours.init(params[0]), theirs.init(params[1])]
    for step in range(3):
        for i, transform in enumerate((ours, theirs)):
            updates, states[i] = transform.update(tree(step + 1), states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)


def test_weight_decay_spares_norms_and_biases():
    optimizer = optim.AdamW(schedule=optim.Constant(peak=0.5), weight_decay=0.1).build()
    params, zeros = tree(0), jax.tree.map(jnp.zeros_like, tree(0))
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["table"], -0.05 * params["table"], rtol=1e-6)
    assert (np.asarray(updates["final_norm"]["scale"]) == 0).all()


def test_clipping_is_by_the_global_norm():
    optimizer = optim.AdamW(
        schedule=optim.Constant(peak=1.0), clip_norm=1e-3, weight_decay=0.0, epsilon=1.0
    ).build()
    params = tree(0)
    updates, _ = optimizer.update(tree(1), optimizer.init(params), params)
    scale = 1e-3 / optax.tree.norm(tree(1))
    np.testing.assert_allclose(updates["table"], -tree(1)["table"] * scale, rtol=2e-3)
    with pytest.raises(InputError, match="clip_norm=0 must be positive"):
        optim.AdamW(schedule=optim.Constant(peak=1.0), clip_norm=0)


def test_adafactor_treats_each_stacked_layer_as_a_matrix_of_its_own():
    config = optim.Adafactor(schedule=optim.Constant(peak=0.1), min_dim_size_to_factor=4)
    stacked, single = config.build(), config.build()
    params, gradients = tree(0), [tree(1), tree(2)]
    stacked_state = stacked.init(params)
    for gradient in gradients:
        updates, stacked_state = stacked.update(gradient, stacked_state, params)
    for side, layers in (("encoder", 2), ("decoder", 3)):
        for layer in range(layers):
            alone = {"mlp": params[side]["layers"]["mlp"][layer]}
            alone_state = single.init(alone)
            for gradient in gradients:
                expected, alone_state = single.update(
                    {"mlp": gradient[side]["layers"]["mlp"][layer]}, alone_state, alone
                )
            np.testing.assert_allclose(updates[side]["layers"]["mlp"][layer], expected["mlp"], rtol=1e-5)


def test_adafactor_on_a_plain_matrix_is_optax():
    ours = optim.Adafactor(schedule=optim.Constant(peak=0.1), min_dim_size_to_factor=4).build()
    theirs = optax.adafactor(0.1, min_dim_size_to_factor=4)
    params = {"table": tree(0)["table"]}
    states = [ours.init(params), theirs.init(params)]
    for step in range(3):
        gradient = {"table": tree(step + 1)["table"]}
        one, states[0] = ours.update(gradient, states[0], params)
        two, states[1] = theirs.update(gradient, states[1], params)
        np.testing.assert_allclose(one["table"], two["table"], rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.AdamW(schedule=optim.Constant(peak=1.0)),
        optim.Adafactor(schedule=optim.Constant(peak=1.0), min_dim_size_to_factor=8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_optimizer_state_lies_where_its_parameters_lie(optimizer, tiny_config):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    with sharding.layout(mesh, sharding.Rules()):
        abstract = jax.eval_shape(
            lambda: state.init_state(tiny_config("encoder_decoder"), optimizer.build(), 0)
        )
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)
    }
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        param = next((params[p] for p in params if p in name), None)
        if param is None or name.endswith("count") or leaf.shape[-1] == 1:
            continue  # counters, and the placeholders of statistics that are not kept
        spec = list(param.sharding.spec)
        if name.endswith(("v_row", "v_col")):  # the mean over the largest dimension, or over the other
            largest = -1 if param.shape[-1] >= param.shape[-2] else -2
            del spec[largest if name.endswith("v_row") else -3 - largest]
        found += 1
        assert list(leaf.sharding.spec) == spec, name
    assert found >= 20
