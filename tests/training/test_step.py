"""One update of the whole batch, however it is computed."""

import jax
import numpy as np
import optax
import pytest

from pretrain import pipeline
from pretrain.bad_steps import BadSteps
from pretrain.errors import InputError
from pretrain.objectives import CausalLM, SpanCorruption
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state, step

OBJECTIVES = {"decoder": CausalLM(z_loss=1e-3), "encoder_decoder": SpanCorruption(label_smoothing=0.1)}


@pytest.fixture
def batch(token_batch):
    """Rows of very different weights: the parts of a batch have them too."""

    def make(family: str) -> dict[str, np.ndarray]:
        rows = token_batch(family, packed=True)
        keep = np.arange(16) < np.array([[13], [2], [5], [1], [0], [13], [7], [3]])
        return rows | {"decoder_loss_weights": rows["decoder_loss_weights"] * keep}

    return make


def trained(config, objective, batch, microbatches=1, mesh=None, steps=3):
    """(parameters, sums of each step, sums of an evaluation)."""
    mesh, rules = (mesh or MeshConfig()).build(None if mesh else jax.devices()[:1]), sharding.Rules()
    optimizer = optax.sgd(0.1)  # not one that makes a large step of a small gradient's rounding
    bytes_of = np.ones(64, np.float32)
    with sharding.layout(mesh, rules):
        graph = state.graph(config)
        update = jax.jit(
            step.make_train_step(
                graph, objective, optimizer, optax.constant_schedule(0.1), BadSteps(), bytes_of, microbatches
            )
        )
        evaluate = jax.jit(step.make_eval_step(graph, objective, bytes_of, microbatches))
        now = jax.jit(lambda: state.init_state(config, optimizer, 0))()
        rows, told = pipeline.to_devices(batch, mesh, rules), []
        for _ in range(steps):
            now, sums = update(now, rows)
            told.append(sums)
        return jax.device_get((now.params, told, evaluate(now.params, rows)))


@pytest.mark.parametrize("family", OBJECTIVES)
def test_accumulated_gradients_are_those_of_the_whole_batch(family, tiny_config, batch):
    config, objective, rows = tiny_config(family), OBJECTIVES[family], batch(family)
    whole = trained(config, objective, rows)
    for microbatches in (2, 8):
        parts = trained(config, objective, rows, microbatches)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), whole, parts)


def test_accumulation_does_not_depend_on_the_mesh(tiny_config, batch):
    config, objective, rows = tiny_config("decoder"), OBJECTIVES["decoder"], batch("decoder")
    one = trained(config, objective, rows, 2)
    many = trained(config, objective, rows, 2, MeshConfig(data=2, fsdp=2, tensor=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, many)


def test_parts_have_dropout_of_their_own(tiny_config, batch):
    """Two equal halves: the gradient is no longer twice that of one half."""
    rows = {name: np.repeat(value[:4], 2, axis=0) for name, value in batch("decoder").items()}
    for dropout, equal in ((0.0, True), (0.5, False)):
        config = tiny_config("decoder", dropout=dropout)
        nll = [
            trained(config, CausalLM(), each, parts, steps=1)[1][0]["nll"]
            for each, parts in ((rows, 2), ({name: value[::2] for name, value in rows.items()}, 1))
        ]
        assert np.isclose(nll[0], 2 * nll[1], rtol=1e-5) == equal


def test_what_is_kept_for_the_backward_pass_shrinks(tiny_config, batch):
    config, rows = tiny_config("decoder", num_layers=4), batch("decoder")
    graph = state.graph(config)
    optimizer, rate = optax.sgd(0.1), optax.constant_schedule(0.1)
    mesh = MeshConfig().build(jax.devices()[:1])
    temporary = []
    for microbatches in (1, 4):
        with sharding.layout(mesh, sharding.Rules()):
            now = jax.eval_shape(lambda: state.init_state(config, optimizer, 0))
            update = step.make_train_step(
                graph, CausalLM(), optimizer, rate, BadSteps(), np.ones(64), microbatches
            )
            compiled = jax.jit(update).lower(sharding.concrete(now), rows).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 0.6 * temporary[0]


def test_a_batch_that_does_not_divide_into_microbatches_is_refused(make_run):
    run = make_run(microbatches=2, batch_size=8)
    run.check_batch(MeshConfig(data=4).build(jax.devices()[:4]))
    with pytest.raises(InputError, match="make it a multiple of 16, 2 microbatches times the shares"):
        run.check_batch(MeshConfig(data=8).build())
    with pytest.raises(InputError, match="microbatches is 0"):
        make_run(microbatches=0)
