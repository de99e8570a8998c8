"""What a run carries from one step to the next."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32, steps made so far; params: float32 tree; opt_state: optax's; key: uint32[2], constant;
    recent: the last losses, where `BadSteps` asks for them.

    The key of a step is `key` folded with `step`, so that a resumed run draws the same dropout.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    recent: Any = ()

    def step_key(self) -> jax.Array:
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def graph(model_config) -> nnx.GraphDef:
    """The model without its numbers: `nnx.merge(graph, params)` is a model."""
    return nnx.graphdef(nnx.eval_shape(lambda: model_config.build(jax.random.key(0))))


def init_params(model_config, seed: int) -> Params:
    """Fresh parameters as a plain dict; the same numbers on every mesh."""
    return nnx.to_pure_dict(nnx.state(model_config.build(jax.random.key(seed))))


def init_state(
    model_config, optimizer: optax.GradientTransformation, seed: int, recent: Any = ()
) -> TrainState:
    """The state before the first update. Trace it under `sharding.layout`: everything lies by the rules."""
    params = init_params(model_config, seed)
    key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, recent)


def count(params: Params) -> int:
    """How many parameters there are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
