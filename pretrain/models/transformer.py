"""A stack of pre-norm transformer blocks, the body that every family shares.

Shapes: B batch, L length, K keys of the memory a decoder attends to, D embed, N heads.
The blocks are one block whose parameters carry a leading layer axis, run by `lax.scan`: compile time does
not grow with depth, and rematerialisation is a policy of the scanned body. `unroll` layers are one turn of
the loop.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import InputError
from pretrain.models import attention, backends, layers
from pretrain.models.masks import Bias, Offset, Seen, bias_of, mask_of

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

REMAT = ("none", "full", "dots", "names")
# What `remat="names"` can keep of a block: heads, what attention mixes and returns, the halves of the MLP.
NAMES = ("query", "key", "value", "mixed", "out", "gate", "up")
KNOWN = {
    "activation": layers.ACTIVATIONS, "remat": REMAT, "dtype": DTYPES, "attention": backends.BACKENDS,
}  # fmt: skip


def check_sizes(config: Any) -> None:
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
    """The shape of one stack. `positions` is "relative" (T5's bias) or "rotary" (scaled dot products)."""

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str
    positions: str
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rotary_theta: float = 10_000.0
    remat: str = "none"
    remat_keep: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
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

    def flops(self, length: int, memory: int = 0) -> float:
        """Floating point operations of the matrix products of one forward pass over `length` tokens.

        Two for each multiply and add: the weights once a token, and the two products of attention
        (in full by convention, also where a causal mask spares some). Norms and softmax are left
        out, as the field does: this is the F of model FLOPs utilisation.
        """
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights = length * (2 * self.embed_dim * (heads + kv) + 3 * self.embed_dim * self.mlp_dim)
        products = 2 * length * length * heads
        if self.cross_attention:
            weights += 2 * self.embed_dim * (length * heads + memory * kv)
            products += 2 * length * memory * heads
        return 2.0 * self.num_layers * (weights + products)


def rematerialised(body: Callable, config: StackConfig) -> Callable:
    """`body` whose backward pass computes again what the policy does not let it keep of the forward pass."""
    policies = jax.checkpoint_policies
    if config.remat == "none":
        return body
    if config.remat == "full":
        return jax.checkpoint(body)
    if config.remat == "dots":
        return jax.checkpoint(body, policy=policies.dots_with_no_batch_dims_saveable)
    kept = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=config.remat_keep, names_which_can_be_offloaded=config.remat_offload,
        offload_src="device", offload_dst="pinned_host",
    )  # fmt: skip
    return jax.checkpoint(body, policy=kept)


class Block(nnx.Module):
    """Self-attention, cross-attention where there is a memory, gated MLP; each normed, dropped, added."""

    def __init__(self, config: StackConfig, key: jax.Array):
        self_key, cross_key, mlp_key = jax.random.split(key, 3)
        relative = config.positions == "relative"

        def make_attention(key: jax.Array, theta: float | None) -> attention.Attention:
            return attention.Attention(
                config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim,
                scaled=not relative, theta=theta, dropout=config.dropout, backend=config.attention,
                chunk=config.attention_chunk, key=key,
            )  # fmt: skip

        def make_norm() -> layers.RMSNorm:
            return layers.RMSNorm(config.embed_dim, epsilon=config.norm_epsilon)

        self.attention_norm = make_norm()
        self.attention = make_attention(self_key, None if relative else config.rotary_theta)
        if config.cross_attention:
            self.cross_norm = make_norm()
            self.cross_attention = make_attention(cross_key, None)
        self.mlp_norm = make_norm()
        self.mlp = layers.GatedMLP(
            config.embed_dim,
            config.mlp_dim,
            activation=config.activation,
            dropout=config.dropout,
            key=mlp_key,
        )
        self.config = config

    def __call__(
        self, x_BLD: jax.Array, key: jax.Array | None, cache: attention.Cache, *,
        index: jax.Array | int, seen: Seen, bias: Offset, positions: jax.Array,
        memory: jax.Array | None, memory_seen: Seen | None,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        keys = layers.split(key, 6)
        drop = self.config.dropout
        h = self.attention_norm(x_BLD)
        h, cache = self.attention(
            h, h, seen=seen, bias=bias, positions_BQ=positions, key=keys[0], cache=cache, index=index
        )
        x_BLD += layers.dropout(h, drop, keys[1])
        if memory is not None and memory_seen is not None:
            h, _ = self.cross_attention(self.cross_norm(x_BLD), memory, seen=memory_seen, key=keys[2])
            x_BLD += layers.dropout(h, drop, keys[3])
        h = self.mlp(self.mlp_norm(x_BLD), keys[4])
        return x_BLD + layers.dropout(h, drop, keys[5]), cache


class Stack(nnx.Module):
    """`num_layers` blocks and a final norm."""

    def __init__(self, config: StackConfig, key: jax.Array):
        bias_key, layers_key = jax.random.split(key)
        self.config = config
        if config.positions == "relative":
            self.relative_bias = attention.RelativeBias(
                config.num_heads, bidirectional=config.bidirectional, buckets=config.relative_buckets,
                max_distance=config.relative_max_distance, key=bias_key,
            )  # fmt: skip
        self.layers = jax.vmap(lambda key: Block(config, key))(
            jax.random.split(layers_key, config.num_layers)
        )
        self.final_norm = layers.RMSNorm(config.embed_dim, epsilon=config.norm_epsilon)

    def bias(self, query_positions_Q: jax.Array, key_positions_K: jax.Array) -> Bias | None:
        """The position bias that all layers share, None where positions are rotary."""
        if self.config.positions != "relative":
            return None
        return self.relative_bias(query_positions_Q, key_positions_K)

    def __call__(
        self, x_BLD: jax.Array, *, seen: Seen, bias: Offset, positions_BL: jax.Array,
        memory_BKD: jax.Array | None = None, memory_seen: Seen | None = None,
        key: jax.Array | None = None, cache: attention.Cache = attention.NO_CACHE, index: jax.Array | int = 0,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        """Hidden states [B, L, D] after the final norm, and the caches with this call's keys and values."""
        first, last, scanned = layers.split(key, 3)
        layer_keys = None if scanned is None else jax.random.split(scanned, self.config.num_layers)

        if self.config.attention in backends.WRITE_OUT_BIAS or cache:
            bias = bias_of(bias)
        if self.config.attention in backends.WRITE_OUT_MASK or cache:
            seen = mask_of(seen)
            memory_seen = None if memory_seen is None else mask_of(memory_seen)

        def body(x_BLD, layer):
            block, key, cache = layer
            return block(
                x_BLD, key, cache, index=index, seen=seen, bias=bias, positions=positions_BL,
                memory=memory_BKD, memory_seen=memory_seen,
            )  # fmt: skip

        x_BLD = layers.dropout(x_BLD, self.config.dropout, first)
        body = rematerialised(body, self.config)
        unroll = min(self.config.unroll, self.config.num_layers)
        x_BLD, cache = jax.lax.scan(body, x_BLD, (self.layers, layer_keys, cache), unroll=unroll)
        return layers.dropout(self.final_norm(x_BLD), self.config.dropout, last), cache
