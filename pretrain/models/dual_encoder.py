"""Two encoders, or one used twice, that turn texts into vectors to be compared.

Shapes: B batch, L length, D embed, E embedding.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import InputError
from pretrain.models.encoder import Batch, Embedder, EncoderConfig, Head, hidden
from pretrain.models.masks import Mask, Masks
from pretrain.models.transformer import Stack
from pretrain.parallel import sharding

Side = Literal["left", "right"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(EncoderConfig):
    """The sizes of each encoder, and how vectors are made of what it says.

    shared: one encoder for both sides; False is two, with no parameter in common.
    embedding_dim: of the vectors, by a product with weights; None takes the encoder's as they are.
    temperature: similarities are divided by it; the model learns it, beginning with this one.
    predicts: the left encoder also says which token each position should hold, as an `Encoder` does, so that
        a mixture may have objectives of that family too.
    """

    family: ClassVar[str] = "dual_encoder"
    masks: ClassVar[Masks] = {
        **EncoderConfig.masks,  # of batches of tokens to predict
        "left": lambda batch: Mask.of(batch["left_encoder_segment_ids"]),
        "right": lambda batch: Mask.of(batch["right_encoder_segment_ids"]),
    }
    shared: bool = True
    embedding_dim: int | None = None
    temperature: float = 0.05
    predicts: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0.001 <= self.temperature <= 100:
            raise InputError(f"Model temperature={self.temperature} must be from 0.001 to 100.")

    @property
    def expresses(self) -> tuple[str, ...]:
        return (self.family, "encoder") if self.predicts else (self.family,)

    def to_express(self, family: str) -> str:
        return " DualEncoderConfig.predicts=True gives it a head for tokens." if family == "encoder" else ""

    def masks_of(self, batch: Mapping[str, Any]) -> Masks:
        tokens = "encoder_segment_ids" in batch
        return {name: mask for name, mask in self.masks.items() if (name == "encoder") == tokens}

    def build(self, key: jax.Array) -> nnx.Module:
        return DualEncoder(self, key)

    def flops(self, lengths: Mapping[str, int]) -> float:
        if "targets" not in lengths:
            return super().flops(lengths)
        projection = 4 * self.embed_dim * (self.embedding_dim or 0)
        return self.stack.flops(lengths["inputs"]) + self.stack.flops(lengths["targets"]) + projection


class Tower(nnx.Module):
    """One encoder."""

    def __init__(self, config: DualEncoderConfig, key: jax.Array):
        embedder, stack, projection = jax.random.split(key, 3)
        self.embedder = Embedder(config, embedder)
        self.stack = Stack(config.stack, stack)
        if config.embedding_dim is not None:
            shape = (config.embed_dim, config.embedding_dim)
            kernel = sharding.normal(projection, shape, ("embed", None), config.embed_dim**-0.5)
            self.projection = nnx.Param(kernel)
        self.projects = config.embedding_dim is not None

    def __call__(
        self, tokens_BL: jax.Array, segments_BL: jax.Array, seen: Mask, positions_BL: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:  # fmt: skip
        """Float32 [B, E] of length 1: the mean over the tokens; zero for rows that have none."""
        x_BLD = hidden(self.embedder, self.stack, tokens_BL, seen, positions_BL, key)
        real_BL = (segments_BL > 0).astype(jnp.float32)
        sums_BD = sharding.einsum("BLD,BL->BD", x_BLD.astype(jnp.float32), real_BL, axes=("batch", "embed"))
        mean_BE = sums_BD / jnp.maximum(real_BL.sum(axis=1, keepdims=True), 1.0)
        if self.projects:
            mean_BE = sharding.einsum("BD,DE->BE", mean_BE, self.projection[...], axes=("batch", None))
        return mean_BE * jax.lax.rsqrt(jnp.sum(mean_BE**2, axis=1, keepdims=True) + 1e-12)


class DualEncoder(nnx.Module):
    def __init__(self, config: DualEncoderConfig, key: jax.Array):
        left, right = jax.random.split(key)
        self.left = Tower(config, left)
        if config.predicts:
            self.head = Head(config, jax.random.fold_in(key, 2))
        if not config.shared:
            self.right = Tower(config, right)
        self.log_scale = nnx.Param(sharding.full((), (), -math.log(config.temperature)))
        self.config = config

    def embed(self, batch: Batch, side: Side, key: jax.Array | None = None) -> jax.Array:
        """Float32 vectors [B, E] of length 1.

        Reads `left_` or `right_encoder_input_tokens`, `_segment_ids` and `_positions`.
        """
        tower = self.left if side == "left" or self.config.shared else self.right
        tokens, segments = batch[f"{side}_encoder_input_tokens"], batch[f"{side}_encoder_segment_ids"]
        seen = self.config.masks[side](batch)
        return tower(tokens, segments, seen, batch[f"{side}_encoder_positions"], key)

    def features(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """What `logits` takes, [B, L, D], as that of an `Encoder`."""
        tokens, seen = batch["encoder_input_tokens"], self.config.masks["encoder"](batch)
        return hidden(self.left.embedder, self.left.stack, tokens, seen, batch["encoder_positions"], key)

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 [B, L, V] of features [B, L, D], where the model predicts."""
        return self.head(x_BLD, self.left.embedder.tokens)

    @property
    def scale(self) -> jax.Array:
        """What similarities are multiplied by, at most 1000."""
        return jnp.exp(jnp.minimum(self.log_scale[...], math.log(1000.0)))
