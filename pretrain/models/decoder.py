"""A decoder-only transformer: RMSNorm, rotary positions, gated MLP, grouped-query heads (Llama's shape).

Shapes: B batch, L length, D embed, V vocab, S length of a cache.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
from flax import nnx

from pretrain.models import attention, layers
from pretrain.models.config import DTYPES, ModelConfig, StackConfig
from pretrain.models.masks import Mask, Masks, Seen
from pretrain.models.transformer import Stack

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """The sizes of a decoder. `dtype` is the compute type; parameters are float32."""

    family: ClassVar[str] = "decoder"
    masks: ClassVar[Masks] = {
        "decoder": lambda batch: Mask.of(
            batch["decoder_segment_ids"], causal=True, prefix_BK=batch.get("decoder_prefix_mask")
        )
    }
    num_layers: int
    num_kv_heads: int | None = None
    activation: str = "silu"
    tied_logits: bool = False
    rotary_theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        _ = self.stack  # refuses what no stack can have

    @property
    def stack(self) -> StackConfig:
        return self.stack_of(positions="rotary", num_kv_heads=self.num_kv_heads or self.num_heads)

    def build(self, key: jax.Array) -> "Decoder":
        return Decoder(self, key)

    def flops(self, lengths: Mapping[str, int]) -> float:
        return (
            self.stack.flops(lengths["targets"]) + 2 * lengths["targets"] * self.embed_dim * self.vocab_size
        )


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, key: jax.Array):
        embedding, stack, unembedding = jax.random.split(key, 3)
        # Tied tables start small so that the first logits are: N(0, 1) would give them variance D.
        stddev = config.embed_dim**-0.5 if config.tied_logits else 1.0
        self.embedding = layers.Embedding(config.vocab_size, config.embed_dim, stddev=stddev, key=embedding)
        self.stack = Stack(config.stack, stack)
        if not config.tied_logits:
            self.unembedding = layers.Unembedding(config.embed_dim, config.vocab_size, key=unembedding)
        self.config = config

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, L, V] of `decoder_target_tokens`; `key` turns dropout on."""
        return self.logits(self.features(batch, key))

    def features(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """What `logits` takes, [B, L, D].

        Reads `decoder_input_tokens`, `decoder_segment_ids`, `decoder_positions` and, where the objective
        gives one, `decoder_prefix_mask`: the input positions that all of their segment may see.
        """
        seen = self.config.masks["decoder"](batch)
        x_BLD, _ = self.hidden(
            batch["decoder_input_tokens"], seen=seen, positions_BL=batch["decoder_positions"], key=key
        )
        return x_BLD

    def hidden(
        self, tokens_BL: jax.Array, *, seen: Seen, positions_BL: jax.Array,
        key: jax.Array | None = None, cache: attention.Cache = attention.NO_CACHE, index: jax.Array | int = 0,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        x_BLD = self.embedding(tokens_BL, DTYPES[self.config.dtype])
        return self.stack(
            x_BLD, seen=seen, bias=None, positions_BL=positions_BL, key=key, cache=cache, index=index
        )

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 [B, L, V] of features [B, L, D]."""
        return self.embedding.attend(x_BLD) if self.config.tied_logits else self.unembedding(x_BLD)

    def empty_cache(self, batch: int, length: int) -> attention.Cache:
        """Room for the keys and values of `length` tokens of each of `batch` rows."""
        stack = self.config.stack
        dtype = DTYPES[self.config.dtype]
        return attention.empty_cache(
            stack.num_layers, batch, length, stack.num_kv_heads, stack.head_dim, dtype
        )

    def extend(
        self, tokens_BL: jax.Array, cache: attention.Cache, index: jax.Array | int, seen_BLS: jax.Array,
        positions_BL: jax.Array,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        """Logits [B, L, V] of `tokens` written into the cache at `index`, each seeing the slots in `seen`."""
        x_BLD, cache = self.hidden(
            tokens_BL, seen=seen_BLS, positions_BL=positions_BL, cache=cache, index=index
        )
        return self.logits(x_BLD), cache
