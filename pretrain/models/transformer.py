"""A stack of transformer blocks, the body that every family shares.

Shapes: B batch, L length, K keys of the memory a decoder attends to, D embed, N heads.
The blocks are one block whose parameters carry a leading layer axis, run by `lax.scan`: compile time does
not grow with depth, and rematerialisation is a policy of the scanned body. `unroll` layers are one turn of
the loop.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models import attention, backends, layers
from pretrain.models.config import StackConfig
from pretrain.models.masks import Bias, Offset, Seen, bias_of, mask_of


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


Norm = layers.RMSNorm | layers.LayerNorm


def norm(config: StackConfig) -> Norm:
    return layers.NORMS[config.norm](config.embed_dim, epsilon=config.norm_epsilon)


class Block(nnx.Module):
    """Self-attention, cross-attention where there is a memory, MLP; each normed, dropped, added."""

    def __init__(self, config: StackConfig, key: jax.Array):
        self_key, cross_key, mlp_key = jax.random.split(key, 3)
        relative = config.positions == "relative"

        def make_attention(key: jax.Array, theta: float | None) -> attention.Attention:
            return attention.Attention(
                config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim,
                scaled=not relative, theta=theta, biases=config.biases, dropout=config.dropout,
                backend=config.attention, chunk=config.attention_chunk, key=key,
            )  # fmt: skip

        rotary = config.rotary_theta if config.positions == "rotary" else None
        self.attention_norm = norm(config)
        self.attention = make_attention(self_key, rotary)
        if config.cross_attention:
            self.cross_norm = norm(config)
            self.cross_attention = make_attention(cross_key, None)
        self.mlp_norm = norm(config)
        self.mlp = layers.MLP(
            config.embed_dim, config.mlp_dim, activation=config.activation, gated=config.gated,
            biases=config.biases, dropout=config.dropout, key=mlp_key,
        )  # fmt: skip
        self.config = config

    def _before(self, norm: Norm, x_BLD: jax.Array) -> jax.Array:
        return norm(x_BLD) if self.config.norm_first else x_BLD

    def _added(self, norm: Norm, x_BLD: jax.Array, h_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        x_BLD += layers.dropout(h_BLD, self.config.dropout, key)
        return x_BLD if self.config.norm_first else norm(x_BLD)

    def __call__(
        self, x_BLD: jax.Array, key: jax.Array | None, cache: attention.Cache, *,
        index: jax.Array | int, seen: Seen, bias: Offset, positions: jax.Array,
        memory: jax.Array | None = None, memory_seen: Seen | None = None, source: jax.Array | None = None,
    ) -> tuple[jax.Array, attention.Cache]:  # fmt: skip
        """source: what self-attention looks at in place of x, another stream [B, L, D] of the same layer."""
        keys = layers.split(key, 6)

        h = self._before(self.attention_norm, x_BLD)
        looked_at = h if source is None else self._before(self.attention_norm, source)
        h, cache = self.attention(
            h, looked_at, seen=seen, bias=bias, positions_BQ=positions, key=keys[0], cache=cache, index=index
        )
        x_BLD = self._added(self.attention_norm, x_BLD, h, keys[1])
        if memory is not None and memory_seen is not None:
            h = self._before(self.cross_norm, x_BLD)
            h, _ = self.cross_attention(h, memory, seen=memory_seen, key=keys[2])
            x_BLD = self._added(self.cross_norm, x_BLD, h, keys[3])
        h = self.mlp(self._before(self.mlp_norm, x_BLD), keys[4])
        return self._added(self.mlp_norm, x_BLD, h, keys[5]), cache


class Stack(nnx.Module):
    """`num_layers` blocks and, where each part of them norms its input, a final norm."""

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
        if config.norm_first:
            self.final_norm = norm(config)

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
        x_BLD, cache = self._through(body, x_BLD, (self.layers, layer_keys, cache))
        if not self.config.norm_first:
            return x_BLD, cache
        return layers.dropout(self.final_norm(x_BLD), self.config.dropout, last), cache

    def _through(self, body: Callable, x_BLD: Any, each: Any) -> tuple[Any, attention.Cache]:
        """Runs `body` over the layers; of `each`, every array has a leading layer axis.

        x_BLD: hidden states, one array or several.
        """
        config = self.config
        again = config.num_layers if config.remat_layers is None else config.remat_layers
        caches = []
        for run, own in ((rematerialised(body, config), slice(again)), (body, slice(again, None))):
            if number := len(range(config.num_layers)[own]):
                some = each if number == config.num_layers else jax.tree.map(operator.itemgetter(own), each)
                x_BLD, cache = jax.lax.scan(run, x_BLD, some, unroll=min(config.unroll, number))
                caches.append(cache)
        return x_BLD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *caches)
