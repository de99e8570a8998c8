"""The jitted programs of a run: initialise, update, evaluate."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pretrain.bad_steps import BadSteps
from pretrain.data import rows
from pretrain.data.vocabulary import token_bytes
from pretrain.fingerprint import batch_hash
from pretrain.objectives.base import Objective
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training import state
from pretrain.training.state import Params, TrainState

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Sums]]
EvalStep = Callable[[Params, Batch], Sums]
Summed = Callable[..., Any]  # (params, batch, key, *others) -> sums, or gradients and sums


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled at their first call, which must be under `sharding.layout(mesh, run.rules)`."""

    init: Callable[[], TrainState]
    train_step: jax.stages.Wrapped
    eval_step: EvalStep

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without making it."""
        return sharding.concrete(jax.eval_shape(self.init))


def programs(run: RunConfig, table: np.ndarray | None = None) -> Programs:
    """The three programs of `run`. The update donates the state it is given.

    table: int [vocabulary], the bytes that each token stands for; None asks the vocabulary.
    """
    graph, optimizer = state.graph(run.model), run.optimizer.build()
    table = token_bytes(run.vocabulary()) if table is None else table
    schedule = run.optimizer.schedule
    return Programs(
        init=jax.jit(lambda: state.init_state(run.model, optimizer, run.seed, run.bad_steps.empty())),
        train_step=jax.jit(
            make_train_step(
                graph, run.objective, optimizer, schedule, run.bad_steps, table, run.microbatches
            ),
            donate_argnums=0,
        ),
        eval_step=jax.jit(make_eval_step(graph, run.objective, table, run.microbatches)),
    )


def loss_sums(
    objective: Objective, model: nnx.Module, batch: Batch, key: jax.Array | None, token_bytes: np.ndarray,
    *factors: jax.Array,
) -> Sums:  # fmt: skip
    """Float32 scalar sums over the batch: those of the objective, `tokens` and `bytes`.

    tokens: positions that hold a token, encoder and decoder both; padding is not counted.
    nll/NAME, correct/NAME, weight/NAME, rows/NAME: of each part of a mixture.
    bytes: of text that the targets stand for, times their weights (sentinels and EOS stand for none); 0 where
        a batch is not shared by all parts, whose losses are of different things.
    factors: those of the objective for the global batch, if it has some.
    """
    sums = dict(vars(objective.loss(model, batch, key, *factors)))
    sums |= _of_parts(objective, sums.pop("of_parts"), batch)
    segments = [batch[name] for name in batch if name.endswith("_segment_ids")]
    sums["tokens"] = sum(jnp.sum(ids > 0, dtype=jnp.float32) for ids in segments)
    table = jnp.asarray(token_bytes, jnp.float32)
    sums["bytes"] = jnp.zeros((), jnp.float32)
    if rows.predicts(batch):
        targets, weights = rows.scored(batch)
        sums["bytes"] += jnp.sum(sharding.take(table, targets, ("batch", "length")) * weights)
    return sums


def _of_parts(objective: Objective, of_parts: jax.Array, batch: Batch) -> Sums:
    """Sums by the names of the parts; a batch that is not shared has no rows of some."""
    if not of_parts.size:
        return {}
    shared = rows.part_ids(batch)
    own = {} if shared else rows.by_part(batch)
    sums: Sums = {}
    for number, part in enumerate(objective.parts):
        for column, name in enumerate(("nll", "correct", "weight")):
            sums[f"{name}/{part.called}"] = of_parts[number, column]
        used = jnp.zeros((), jnp.float32)
        if shared:
            used_BL = (batch[f"{rows.side(batch)}_segment_ids"] > 0) & (shared[0] == number)
            used += jnp.sum(jnp.any(used_BL, axis=1), dtype=jnp.float32)
        elif number in own:
            used += jnp.sum(rows.real(own[number]), dtype=jnp.float32)
        sums[f"rows/{part.called}"] = used
    return sums


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    bad_steps: BadSteps,
    token_bytes: np.ndarray,
    microbatches: int = 1,
) -> TrainStep:
    """(state, batch) -> (state, sums). The gradient is that of the summed loss, divided once by the summed
    weight of the global batch; the sums also hold the `gradient_norm` before clipping,
    the `parameter_norm` after the update, the `learning_rate` of the update, whether the step is `bad`
    and the `batch_hash`, uint32 [2], of what it was fed.
    """

    def summed(
        params: Params, batch: Batch, key: jax.Array | None, *factors: jax.Array
    ) -> tuple[Params, Sums]:
        def loss(params: Params) -> tuple[jax.Array, Sums]:
            sums = loss_sums(objective, nnx.merge(graph, params), batch, key, token_bytes, *factors)
            return sums["loss"], sums

        return jax.grad(loss, has_aux=True)(params)

    summed_over_all = accumulated(summed, microbatches)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        factors = objective.factors(batch)
        others = () if factors is None else (factors,)
        gradients, sums = summed_over_all(state.params, batch, state.step_key(), *others)
        scale = 1.0 / jnp.maximum(sums["weight"], 1.0)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        sums["gradient_norm"] = optax.tree.norm(gradients)
        sums["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        bad, recent = bad_steps.judge(sums["loss"] * scale, sums["gradient_norm"], state.recent)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if bad_steps.then == "skip":
            old = (state.params, state.opt_state)
            params, opt_state = jax.tree.map(lambda x, y: _kept(bad, x, y), old, (params, opt_state))
        sums["bad"], sums["batch_hash"] = bad.astype(jnp.float32), batch_hash(batch)
        sums["parameter_norm"] = optax.tree.norm(params)
        return TrainState(state.step + 1, params, opt_state, state.key, recent), sums

    return train_step


def accumulated(summed: Summed, parts: int) -> Summed:
    """`summed` of a batch as the sum over so many parts of it, one after the other, in the memory of one.

    What it takes beside parameters, batch and key is of the whole batch, and goes to each part as it is.

    Gradients are summed here, and divided by the weight of the whole batch after: to divide each part's by
    its own weight, as T5X does, gives another update wherever the weights differ.
    """
    if parts == 1:
        return summed

    def over_parts(params: Params, batch: Batch, key: jax.Array | None, *others: jax.Array) -> Any:
        def cut(x_BL: jax.Array) -> jax.Array:
            # Part p has the rows p, p + parts, ...: every device finds its share among the rows it holds.
            size, length = x_BL.shape
            x_RPL = sharding.reshape(x_BL, (size // parts, parts, length), ("batch", None, "length"))
            return jnp.moveaxis(x_RPL, 1, 0)

        def add(totals, part):
            index, own = part
            part_key = None if key is None else jax.random.fold_in(key, index)
            return jax.tree.map(jnp.add, totals, summed(params, own, part_key, *others)), None

        parts_PRL = jax.tree.map(cut, dict(batch))
        first = jax.tree.map(lambda x_PRL: x_PRL[0], parts_PRL)
        of_one = jax.eval_shape(summed, params, first, key, *others)
        totals, _ = jax.lax.scan(add, sharding.zeros_like(of_one), (jnp.arange(parts), parts_PRL))
        return totals

    return over_parts


def _kept(bad: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """`old` if the step is bad; but the optimizer's counts go on, by which schedules know the step."""
    is_count = new.ndim == 0 and jnp.issubdtype(new.dtype, jnp.integer)
    return new if is_count else jnp.where(bad, old, new)


def make_eval_step(
    graph: nnx.GraphDef, objective: Objective, token_bytes: np.ndarray, microbatches: int = 1
) -> EvalStep:
    """(params, batch) -> sums, without dropout."""

    def summed(params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        return loss_sums(objective, nnx.merge(graph, params), batch, key, token_bytes)

    over_all = accumulated(summed, microbatches)
    return lambda params, batch: over_all(params, batch, None)
