"""Two streams of one set of weights: one holds what each token is, the other predicts it without looking.

XLNet's two-stream self-attention (https://arxiv.org/abs/1906.08237, section 2.3). Tokens have an order; those
of order -1 are context. In each layer

    content stream   h = block(h, keys and values of h)   sees orders up to its own, and so itself
    query stream     g = block(g, keys and values of h)   sees orders below its own

g begins as one learned vector in every position, so all it knows of its own token is where that stands.
Shapes: B batch, L length, D embed, V vocab.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import InputError
from pretrain.models import attention, backends, layers
from pretrain.models.config import DTYPES, ModelConfig, StackConfig
from pretrain.models.masks import Mask, Masks, Offset, Seen, bias_of, mask_of
from pretrain.models.transformer import Stack
from pretrain.parallel import sharding

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStreamConfig(ModelConfig):
    """The sizes of a model of two streams. `dtype` is the compute type; parameters are float32.

    positions: "rotary" or "relative", which a query knows without its token; learned ones come with it.
    """

    family: ClassVar[str] = "two_stream"
    masks: ClassVar[Masks] = {
        "content": lambda batch: Mask.of(batch["encoder_segment_ids"], order_BL=batch["encoder_order"]),
        "query": lambda batch: Mask.of(
            batch["encoder_segment_ids"], order_BL=batch["encoder_order"], strict=True
        ),
    }
    num_layers: int
    norm: str = "rms"
    norm_first: bool = True
    gated: bool = True
    biases: bool = False
    positions: str = "rotary"
    rotary_theta: float = 10_000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.positions == "learned":
            raise InputError(
                "Model positions='learned' come with the tokens, which a query stream has not: take 'rotary' "
                "or 'relative'."
            )
        _ = self.stack  # refuses what no stack can have

    @property
    def stack(self) -> StackConfig:
        return self.stack_of(num_kv_heads=self.num_heads, bidirectional=True)

    def build(self, key: jax.Array) -> "TwoStream":
        return TwoStream(self, key)

    def flops(self, lengths: Mapping[str, int]) -> float:
        """Of both streams: their keys and values once, and of the last layer's content stream no more."""
        length, heads = lengths["inputs"], self.num_heads * self.head_dim
        of_layer = self.stack.flops(length) / self.num_layers
        keys_and_values = 2 * length * self.embed_dim * 2 * heads
        content = (self.num_layers - 1) * (of_layer - keys_and_values)
        return self.num_layers * of_layer + content + 2 * length * self.embed_dim * self.vocab_size


class TwoStreamStack(Stack):
    def streams(
        self, h_BLD: jax.Array, g_BLD: jax.Array, *, content: Mask, query: Mask, bias: Offset,
        positions_BL: jax.Array, key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """The query stream [B, L, D] after the final norm.

        content, query: what each stream sees of the content stream.
        """
        config = self.config
        first_h, first_g, last, scanned = layers.split(key, 4)
        layer_keys = None if scanned is None else jax.random.split(scanned, (config.num_layers, 2))
        if config.attention in backends.WRITE_OUT_BIAS:
            bias = bias_of(bias)
        written = config.attention in backends.WRITE_OUT_MASK
        seen_by_h, seen_by_g = (mask_of(mask) if written else mask for mask in (content, query))

        def body(streams, layer):
            (h_BLD, g_BLD), (block, keys) = streams, layer
            key_h, key_g = (None, None) if keys is None else keys

            def after(x_BLD: jax.Array, seen: Seen, key: jax.Array | None) -> jax.Array:
                return block(
                    x_BLD, key, attention.NO_CACHE, index=0, seen=seen, bias=bias, positions=positions_BL,
                    source=h_BLD,
                )[0]  # fmt: skip

            return (after(h_BLD, seen_by_h, key_h), after(g_BLD, seen_by_g, key_g)), attention.NO_CACHE

        streams = (
            layers.dropout(h_BLD, config.dropout, first_h),
            layers.dropout(g_BLD, config.dropout, first_g),
        )
        (_, g_BLD), _ = self._through(body, streams, (self.layers, layer_keys))
        if not config.norm_first:
            return g_BLD
        return layers.dropout(self.final_norm(g_BLD), config.dropout, last)


class TwoStream(nnx.Module):
    def __init__(self, config: TwoStreamConfig, key: jax.Array):
        tokens, start, stack = jax.random.split(key, 3)
        stddev = config.embed_dim**-0.5  # small, so that the first logits are: they use the table too
        self.embedding = layers.Embedding(config.vocab_size, config.embed_dim, stddev=stddev, key=tokens)
        self.start = nnx.Param(sharding.normal(start, (config.embed_dim,), (None,), stddev))
        self.stack = TwoStreamStack(config.stack, stack)
        self.bias = nnx.Param(sharding.full((config.vocab_size,), ("vocab",), 0.0))
        self.config = config

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, L, V] of `encoder_target_tokens`; `key` turns dropout on."""
        return self.logits(self.features(batch, key))

    def features(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """What `logits` takes, [B, L, D]: the query stream. That of context has nothing to see.

        Reads `encoder_input_tokens`, `encoder_order`, `encoder_segment_ids` and `encoder_positions`.
        """
        length = batch["encoder_segment_ids"].shape[1]
        place = jnp.arange(length)  # distances in a segment are those of the row
        h_BLD = self.embedding(batch["encoder_input_tokens"], DTYPES[self.config.dtype])
        g_BLD = sharding.full(h_BLD.shape, layers.RESIDUAL, 0.0, h_BLD.dtype)
        return self.stack.streams(
            h_BLD,
            g_BLD + self.start[...].astype(h_BLD.dtype),
            content=self.config.masks["content"](batch),
            query=self.config.masks["query"](batch),
            bias=self.stack.bias(place, place),
            positions_BL=batch["encoder_positions"],
            key=key,
        )

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 [B, L, V] of features [B, L, D]."""
        return self.embedding.attend(x_BLD) + self.bias[...]
