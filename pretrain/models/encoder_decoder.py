"""T5 1.1: an encoder and a decoder with RMSNorm, gated GELU, shared relative position bias, untied logits.

Paper: https://arxiv.org/abs/1910.10683; version 1.1 as in https://arxiv.org/abs/2002.05202.
Shapes: B batch, E encoder length, L decoder length, D embed, V vocab, S length of a cache.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models import attention, layers
from pretrain.models.config import DTYPES, ModelConfig, StackConfig
from pretrain.models.masks import Mask, Masks, Seen
from pretrain.models.transformer import Stack

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(ModelConfig):
    """The sizes of an encoder-decoder. `dtype` is the compute type; parameters are float32."""

    family: ClassVar[str] = "encoder_decoder"
    masks: ClassVar[Masks] = {
        "encoder": lambda batch: Mask.of(batch["encoder_segment_ids"]),
        "decoder": lambda batch: Mask.of(batch["decoder_segment_ids"], causal=True),
        "cross": lambda batch: Mask.of(batch["decoder_segment_ids"], batch["encoder_segment_ids"]),
    }
    encoder_layers: int
    decoder_layers: int
    relative_buckets: int = 32
    relative_max_distance: int = 128

    def stack(self, num_layers: int, *, decodes: bool) -> StackConfig:
        return self.stack_of(
            num_layers=num_layers, num_kv_heads=self.num_heads, positions="relative",
            cross_attention=decodes, bidirectional=not decodes,
        )  # fmt: skip

    @property
    def encoder(self) -> StackConfig:
        return self.stack(self.encoder_layers, decodes=False)

    @property
    def decoder(self) -> StackConfig:
        return self.stack(self.decoder_layers, decodes=True)

    def build(self, key: jax.Array) -> "EncoderDecoder":
        return EncoderDecoder(self, key)

    def flops(self, lengths: Mapping[str, int]) -> float:
        inputs, targets = lengths["inputs"], lengths["targets"]
        output = 2 * targets * self.embed_dim * self.vocab_size
        return self.encoder.flops(inputs) + self.decoder.flops(targets, memory=inputs) + output


class EncoderDecoder(nnx.Module):
    def __init__(self, config: EncoderDecoderConfig, key: jax.Array):
        embedding, encoder, decoder, unembedding = jax.random.split(key, 4)
        self.embedding = layers.Embedding(config.vocab_size, config.embed_dim, stddev=1.0, key=embedding)
        self.encoder = Stack(config.encoder, encoder)
        self.decoder = Stack(config.decoder, decoder)
        self.unembedding = layers.Unembedding(config.embed_dim, config.vocab_size, key=unembedding)
        self.config = config

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, L, V] of `decoder_target_tokens`; `key` turns dropout on."""
        return self.logits(self.features(batch, key))

    def features(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """What `logits` takes, [B, L, D].

        Reads `encoder_input_tokens`, `decoder_input_tokens`, and the segment ids and positions of both.
        """
        encoder_key, decoder_key = layers.split(key, 2)
        encoded_BED = self.encode(batch, encoder_key)
        length = batch["decoder_segment_ids"].shape[1]
        x_BLD, _ = self.hidden(
            batch["decoder_input_tokens"],
            encoded_BED,
            seen=self.config.masks["decoder"](batch),
            memory_seen=self.config.masks["cross"](batch),
            positions_L=jnp.arange(length),
            key_positions_K=jnp.arange(length),
            key=decoder_key,
        )
        return x_BLD

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 [B, L, V] of features [B, L, D]."""
        return self.unembedding(x_BLD)

    def encode(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Hidden states [B, E, D] of `encoder_input_tokens`."""
        # Distances inside a packed segment are those of the row, so row positions serve the relative bias.
        position = jnp.arange(batch["encoder_segment_ids"].shape[1])
        x_BED, _ = self.encoder(
            self.embedding(batch["encoder_input_tokens"], DTYPES[self.config.dtype]),
            seen=self.config.masks["encoder"](batch),
            bias=self.encoder.bias(position, position),
            positions_BL=batch["encoder_positions"],
            key=key,
        )
        return x_BED

    def hidden(
        self, tokens_BL: jax.Array, encoded_BED: jax.Array, *, seen: Seen,
        memory_seen: Seen, positions_L: jax.Array, key_positions_K: jax.Array,
        key: jax.Array | None = None, cache: attention.Cache = attention.NO_CACHE,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        return self.decoder(
            self.embedding(tokens_BL, DTYPES[self.config.dtype]),
            seen=seen,
            bias=self.decoder.bias(positions_L, key_positions_K),
            positions_BL=jnp.broadcast_to(positions_L, tokens_BL.shape),
            memory_BKD=encoded_BED,
            memory_seen=memory_seen,
            key=key,
            cache=cache,
            index=index,
        )

    def empty_cache(self, batch: int, length: int) -> attention.Cache:
        """Room for the keys and values of `length` tokens of each of `batch` rows."""
        stack = self.config.decoder
        dtype = DTYPES[self.config.dtype]
        return attention.empty_cache(
            stack.num_layers, batch, length, stack.num_kv_heads, stack.head_dim, dtype
        )

    def extend(
        self, tokens_BL: jax.Array, encoded_BED: jax.Array, encoder_segments_BE: jax.Array,
        cache: attention.Cache, index: jax.Array | int,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        """Logits [B, L, V] of `tokens`, which follow the `index` tokens already in the cache."""
        length, slots = tokens_BL.shape[1], cache["key"].shape[2]
        positions = index + jnp.arange(length)
        seen = positions[:, None] >= jnp.arange(slots)[None, :]
        x_BLD, cache = self.hidden(
            tokens_BL,
            encoded_BED,
            seen=jnp.broadcast_to(seen, (tokens_BL.shape[0], length, slots)),
            memory_seen=Mask.of(jnp.ones_like(tokens_BL), encoder_segments_BE),
            positions_L=positions,
            key_positions_K=jnp.arange(slots),
            cache=cache,
            index=index,
        )
        return self.logits(x_BLD), cache
