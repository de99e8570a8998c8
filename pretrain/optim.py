"""Learning rate schedules and optimizers: frozen values that build optax transformations.

A schedule is called with the step (0 is the first update) and returns the learning rate.
"""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.errors import InputError

Schedule = Callable[[jax.Array | int], jax.Array]


def _warmup(step: jax.Array | int, warmup_steps: int) -> jax.Array:
    """Rises linearly to 1 at `warmup_steps`; the first update already moves."""
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1.0) / max(warmup_steps, 1))


def _progress(step: jax.Array | int, start: int, end: int) -> jax.Array:
    """How far `step` is from `start` (0) to `end` (1)."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(end - start, 1), 0.0, 1.0)


class _NotNegative:
    """A dataclass of numbers, none below 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(
                    f"{type(self).__name__}.{name} is {value!r}; give a number that is not below 0."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(_NotNegative):
    """`peak` after a linear warm-up (none by default).

    >>> float(Constant(peak=0.5, warmup_steps=2)(0)), float(Constant(peak=0.5, warmup_steps=2)(9))
    (0.25, 0.5)
    """

    peak: float
    warmup_steps: int = 0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        return self.peak * _warmup(step, self.warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(_NotNegative):
    """T5's schedule, `scale / sqrt(max(step, hold_steps))`: flat for `hold_steps`, then falling.

    >>> schedule = InverseSquareRoot(scale=1.0, hold_steps=10_000)
    >>> [round(float(schedule(step)), 6) for step in (0, 40_000, 1_000_000)]
    [0.01, 0.005, 0.001]
    """

    scale: float = 1.0
    hold_steps: int = 10_000
    warmup_steps: int = 0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        held = jnp.maximum(jnp.asarray(step, jnp.float32), float(max(self.hold_steps, 1)))
        return _warmup(step, self.warmup_steps) * self.scale * jax.lax.rsqrt(held)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_NotNegative):
    """Linear warm-up to `peak`, then linearly to `final` at `total_steps`."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        gone = _progress(step, self.warmup_steps, self.total_steps)
        return _warmup(step, self.warmup_steps) * (self.peak + (self.final - self.peak) * gone)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(_NotNegative):
    """Linear warm-up to `peak`, then half a cosine to `final` at `total_steps`."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        left = 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, self.warmup_steps, self.total_steps)))
        return _warmup(step, self.warmup_steps) * (self.final + (self.peak - self.final) * left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_NotNegative):
    """Linear warm-up, `peak` for most of the run, linear decay to `final` over the last `decay_steps`."""

    peak: float
    total_steps: int
    decay_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        gone = _progress(step, self.total_steps - self.decay_steps, self.total_steps)
        return _warmup(step, self.warmup_steps) * (self.peak + (self.final - self.peak) * gone)


def decays(path: tuple[Any, ...], no_decay: tuple[str, ...]) -> bool:
    """Whether weight decay applies to the parameter at `path`: none of `no_decay` is part of its name."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return not any(part in name for part in no_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer shares: a schedule, global-norm clipping, decoupled and masked weight decay.

    clip_norm: gradients are scaled down to this global norm; None does not clip.
    weight_decay: each update subtracts learning rate * weight_decay * parameter.
    no_decay: parameters whose path contains one of these are not decayed.
    """

    schedule: Schedule
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ("norm", "bias")

    def __post_init__(self):
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(
                f"Optimizer clip_norm={self.clip_norm} must be positive, or None for no clipping."
            )

    def direction(self) -> optax.GradientTransformation:
        """Gradients to unscaled updates, to be subtracted; the subclass's own part."""
        raise NotImplementedError

    def build(self) -> optax.GradientTransformation:
        """The whole transformation, from gradients to what is added to the parameters."""

        def mask(params):
            return jax.tree_util.tree_map_with_path(lambda path, _: decays(path, self.no_decay), params)

        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        return optax.chain(
            clip,
            self.direction(),
            optax.add_decayed_weights(self.weight_decay, mask) if self.weight_decay else optax.identity(),
            optax.scale_by_learning_rate(self.schedule),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor (https://arxiv.org/abs/1804.04235) with T5's settings, each layer on its own.

    Layers are stored stacked, [layers, ...]. `optax.adafactor` on such an array would share one update
    clip and one parameter scale between all layers; here every layer has its own, as in T5 and T5X.
    Matrices whose two largest sides both reach `min_dim_size_to_factor` keep row and column statistics only.
    """

    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    clip_norm: float | None = None

    def direction(self) -> optax.GradientTransformation:
        flip = optax.scale(-1.0)  # optax.adafactor's updates are to be added, a direction is subtracted
        return per_layer(
            optax.chain(
                optax.adafactor(
                    learning_rate=None,
                    min_dim_size_to_factor=self.min_dim_size_to_factor,
                    decay_rate=self.decay_rate,
                    multiply_by_parameter_scale=self.multiply_by_parameter_scale,
                    clipping_threshold=self.clipping_threshold,
                ),
                flip,
            )
        )


def per_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` on every parameter by itself, mapped over the layer axis of those under `layers`."""

    def on_leaf(path, function: Callable) -> Callable:
        stacked = any(getattr(entry, "key", None) == "layers" for entry in path)
        return jax.vmap(function) if stacked else function

    def init(params):
        return jax.tree_util.tree_map_with_path(lambda path, p: on_leaf(path, transform.init)(p), params)

    def update(updates, state, params):
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, *leaf: on_leaf(path, transform.update)(*leaf), updates, state, params
        )
        return tuple(
            jax.tree.map(operator.itemgetter(part), pairs, is_leaf=lambda node: isinstance(node, tuple))
            for part in (0, 1)
        )

    return optax.GradientTransformation(init, update)
