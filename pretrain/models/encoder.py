"""An encoder: every token sees its whole segment, and a head says which token each position should hold.

By default a modern one: RMSNorm before each part, rotary positions, gated MLP, no biases (as in
https://arxiv.org/abs/2412.13663). With norm="layer", norm_first=False, gated=False, biases=True,
positions="learned" and activation="exact_gelu" it is BERT's (https://arxiv.org/abs/1810.04805).
Shapes: B batch, L length, D embed, V vocab.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import InputError
from pretrain.models import layers
from pretrain.models.config import DTYPES, ModelConfig, StackConfig
from pretrain.models.masks import Mask, Masks
from pretrain.models.transformer import Norm, Stack, norm
from pretrain.parallel import sharding

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """The sizes of an encoder. `dtype` is the compute type; parameters are float32.

    max_positions: how many positions there are where they are learned; None where they are not.
    """

    family: ClassVar[str] = "encoder"
    masks: ClassVar[Masks] = {"encoder": lambda batch: Mask.of(batch["encoder_segment_ids"])}
    num_layers: int
    norm: str = "rms"
    norm_first: bool = True
    gated: bool = True
    biases: bool = False
    positions: str = "rotary"
    max_positions: int | None = None
    rotary_theta: float = 10_000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128

    def __post_init__(self):
        super().__post_init__()
        if (self.positions == "learned") != (self.max_positions is not None):
            raise InputError(
                f"Model max_positions={self.max_positions} with positions={self.positions!r}: give it with "
                "positions='learned', and only then."
            )
        _ = self.stack  # refuses what no stack can have

    @property
    def stack(self) -> StackConfig:
        return self.stack_of(num_kv_heads=self.num_heads, bidirectional=True)

    def build(self, key: jax.Array) -> nnx.Module:
        return Encoder(self, key)

    def flops(self, lengths: Mapping[str, int]) -> float:
        length = lengths["inputs"]
        return self.stack.flops(length) + 2 * length * self.embed_dim * (self.embed_dim + self.vocab_size)


class Embedder(nnx.Module):
    """Token embeddings, and learned positions and a norm of their sum where the stack has them so."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        tokens, positions = jax.random.split(key)
        stddev = config.embed_dim**-0.5  # small, so that the first logits are: the head uses the table too
        self.tokens = layers.Embedding(config.vocab_size, config.embed_dim, stddev=stddev, key=tokens)
        if config.max_positions is not None:
            shape, axes = (config.max_positions, config.embed_dim), (None, "embed")
            self.positions = nnx.Param(sharding.normal(positions, shape, axes, stddev))
        if not config.norm_first:
            self.norm = norm(config.stack)
        self.config = config

    def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        x_BLD = self.tokens(tokens_BL, DTYPES[self.config.dtype])
        if (most := self.config.max_positions) is not None:
            if tokens_BL.shape[1] > most:
                raise InputError(f"Rows of {tokens_BL.shape[1]} tokens are longer than max_positions={most}.")
            table = sharding.constrain(self.positions[...].astype(x_BLD.dtype), (None, None))
            x_BLD += sharding.take(table, positions_BL, layers.RESIDUAL)
        return x_BLD if self.config.norm_first else self.norm(x_BLD)


class Head(nnx.Module):
    """What BERT predicts tokens with: a layer of its own, a norm, the embedding table, a bias a token."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        dim = config.embed_dim
        self.dense = nnx.Param(sharding.normal(key, (dim, dim), ("embed", None), dim**-0.5))
        self.dense_bias = layers.bias(dim, None, config.biases)
        self.norm: Norm = norm(config.stack)
        self.bias = nnx.Param(sharding.full((config.vocab_size,), ("vocab",), 0.0))
        self.activation = config.activation

    def __call__(self, x_BLD: jax.Array, embedding: layers.Embedding) -> jax.Array:
        h_BLD = layers.affine(x_BLD, self.dense, self.dense_bias, layers.RESIDUAL)
        return embedding.attend(self.norm(layers.ACTIVATIONS[self.activation](h_BLD))) + self.bias[...]


def hidden(
    embedder: Embedder, stack: Stack, tokens_BL: jax.Array, seen: Mask, positions_BL: jax.Array,
    key: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """Hidden states [B, L, D] of tokens that see those of the mask."""
    place = jnp.arange(tokens_BL.shape[1])  # distances in a segment are those of the row
    x_BLD, _ = stack(
        embedder(tokens_BL, positions_BL),
        seen=seen,
        bias=stack.bias(place, place),
        positions_BL=positions_BL,
        key=key,
    )
    return x_BLD


class Encoder(nnx.Module):
    def __init__(self, config: EncoderConfig, key: jax.Array):
        embedder, stack, head = jax.random.split(key, 3)
        self.embedder = Embedder(config, embedder)
        self.stack = Stack(config.stack, stack)
        self.head = Head(config, head)
        self.config = config

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, L, V] of `encoder_target_tokens`; `key` turns dropout on."""
        return self.logits(self.features(batch, key))

    def features(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """What `logits` takes, [B, L, D].

        Reads `encoder_input_tokens`, `encoder_segment_ids` and `encoder_positions`.
        """
        tokens, seen = batch["encoder_input_tokens"], self.config.masks["encoder"](batch)
        return hidden(self.embedder, self.stack, tokens, seen, batch["encoder_positions"], key)

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 [B, L, V] of features [B, L, D]."""
        return self.head(x_BLD, self.embedder.tokens)
