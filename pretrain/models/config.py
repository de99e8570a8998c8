"""The sizes of a model and how it is computed: what every family says, and what it says of a stack."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import InputError
from pretrain.models import backends, layers
from pretrain.models.masks import Masks

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

REMAT = ("none", "full", "dots", "names")
# What `remat="names"` can keep of a block: heads, what attention mixes and returns, the halves of the MLP.
NAMES = ("query", "key", "value", "mixed", "out", "gate", "up")
KNOWN = {
    "activation": layers.ACTIVATIONS, "remat": REMAT, "dtype": DTYPES, "attention": backends.BACKENDS,
    "norm": layers.NORMS, "positions": ("relative", "rotary", "learned"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the families share. `dtype` is the compute type; parameters are float32.

    masks: who may look at whom in each kind of attention; the model asks here, and so does a picture of it.
    """

    family: ClassVar[str]
    masks: ClassVar[Masks] = {}
    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = "gelu"
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    remat_keep: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
    remat_layers: int | None = None
    attention: str = "plain"
    attention_chunk: int = 512
    unroll: int = 1

    def __post_init__(self):
        _check(self)

    def stack_of(self, **own: Any) -> "StackConfig":
        """A stack with this model's settings and `own` over them."""
        names = {field.name for field in dataclasses.fields(StackConfig)}
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return StackConfig(**{name: value for name, value in shared.items() if name in names} | own)

    @property
    def expresses(self) -> tuple[str, ...]:
        """The families whose objectives it can learn."""
        return (self.family,)

    def to_express(self, family: str) -> str:
        """What would make it learn those of another family, if something would; goes behind a sentence."""
        return ""

    def masks_of(self, batch: Mapping[str, Any]) -> Masks:
        """Those of `masks` that are asked for where the model reads this batch."""
        return self.masks

    def build(self, key: jax.Array) -> nnx.Module:
        """A freshly initialised model."""
        raise NotImplementedError

    def flops(self, lengths: Mapping[str, int]) -> float:
        """Floating point operations of the matrix products of one example's forward pass."""
        raise NotImplementedError


def _check(config: ModelConfig) -> None:
    """Raises InputError for a field of a model config that no model can have."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        known = KNOWN.get(field.name)
        if known is not None and value not in known:
            raise InputError(f"Model {field.name}={value!r} is not one of {', '.join(known)}.")
        if field.name in ("remat_keep", "remat_offload") and not set(value) <= set(NAMES):
            raise InputError(f"Model {field.name}={value!r} has names that are none of {', '.join(NAMES)}.")
        if field.type in (int, int | None) and value is not None and value < 1:
            raise InputError(f"Model {field.name}={value} must be at least 1.")
    if (config.remat == "names") != bool({*config.remat_keep, *config.remat_offload}):
        raise InputError(
            f"Model remat={config.remat!r} with remat_keep={config.remat_keep} and "
            f"remat_offload={config.remat_offload}: names go with remat='names', and it needs some."
        )
    if config.remat == "none" and config.remat_layers is not None:
        raise InputError(f"Model remat_layers={config.remat_layers} goes with a remat other than 'none'.")
    backends.check(config)
    if not 0 <= config.dropout < 1:
        raise InputError(f"Model dropout={config.dropout} must be in [0, 1).")
    buckets, farthest = getattr(config, "relative_buckets", 4), getattr(config, "relative_max_distance", 3)
    if buckets < 4 or farthest <= buckets // 2:
        raise InputError(
            f"Model relative_buckets={buckets} and relative_max_distance={farthest}: use at least 4 buckets, "
            "and a distance of more than half as many."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The shape of one stack.

    positions: "relative" (T5's bias), "rotary" (scaled dot products) or "learned" (scaled, and the stack
        gets them with its input).
    norm: "rms" or "layer"; norm_first: before each part of a block and at the end of the stack, as most do;
        False is after each sum, as BERT does.
    gated: whether the MLP has a gate; biases: whether products with weights add one.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str
    positions: str
    norm: str = "rms"
    norm_first: bool = True
    gated: bool = True
    biases: bool = False
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rotary_theta: float = 10_000.0
    remat: str = "none"
    remat_keep: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
    remat_layers: int | None = None
    attention: str = "plain"
    attention_chunk: int = 512
    unroll: int = 1
    cross_attention: bool = False
    bidirectional: bool = False

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"Model num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(f"Model head_dim={self.head_dim} must be even: rotary positions turn pairs.")

    def flops(self, length: int, memory: int = 0) -> float:
        """Floating point operations of the matrix products of one forward pass over `length` tokens.

        Two for each multiply and add: the weights once a token, and the two products of attention
        (in full by convention, also where a causal mask spares some). Norms and softmax are left
        out, as the field does: this is the F of model FLOPs utilisation.
        """
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        mlp = (3 if self.gated else 2) * self.embed_dim * self.mlp_dim
        weights = length * (2 * self.embed_dim * (heads + kv) + mlp)
        products = 2 * length * length * heads
        if self.cross_attention:
            weights += 2 * self.embed_dim * (length * heads + memory * kv)
            products += 2 * length * memory * heads
        return 2.0 * self.num_layers * (weights + products)
