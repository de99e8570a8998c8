"""Generation with a key/value cache: one pass over the prompt, then a token at a time.

Shapes: B batch, E encoder length, P prompt length, T new tokens, S = P + T slots of the cache, V vocab.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pretrain.inference.sampling import Sampling
from pretrain.models.attention import Cache
from pretrain.models.decoder import Decoder
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.parallel import sharding

BOS = 0

# (tokens [B, 1], cache, index) -> (logits [B, 1, V], cache)
Extend = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


def infill(
    model: EncoderDecoder, inputs_BE: jax.Array, segments_BE: jax.Array, key: jax.Array, *,
    max_tokens: int, vocab_size: int, eos_id: int, sampling: Sampling,
) -> jax.Array:  # fmt: skip
    """int32 [B, T]: what the decoder says to each encoder input, EOS and then zeros at the end.

    segments are 1 on the tokens of a row and 0 on its padding.
    """
    positions = jnp.broadcast_to(jnp.arange(inputs_BE.shape[1]), inputs_BE.shape)
    encoded = model.encode(
        {
            "encoder_input_tokens": inputs_BE,
            "encoder_segment_ids": segments_BE,
            "encoder_positions": positions,
        }
    )

    def extend(tokens: jax.Array, cache: Cache, index: jax.Array) -> tuple[jax.Array, Cache]:
        return model.extend(tokens, encoded, segments_BE, cache, index)

    bos = jnp.full_like(inputs_BE[:, :1], BOS)
    logits, cache = extend(bos, model.empty_cache(inputs_BE.shape[0], max_tokens), jnp.int32(0))
    return _sample(extend, cache, logits[:, -1], 1, key, max_tokens, vocab_size, eos_id, sampling)


def continue_prompt(
    model: Decoder, prompt_BP: jax.Array, real_BP: jax.Array, key: jax.Array, *,
    bidirectional_prompt: bool, max_tokens: int, vocab_size: int, eos_id: int, sampling: Sampling,
) -> jax.Array:  # fmt: skip
    """int32 [B, T]: the tokens that follow each prompt, EOS and then zeros at the end.

    Prompts begin with BOS and are padded on the left, so that all rows write the same slot of the cache;
    `real` is 1 on BOS and tokens, 0 on padding.
    """
    B, P = prompt_BP.shape
    slots = jnp.arange(P + max_tokens)
    pad_B = P - jnp.sum(real_BP, axis=1)
    real_BS = slots[None, :] >= pad_B[:, None]

    def seen(index: jax.Array | int, length: int) -> jax.Array:
        """Mask [B, length, S]: real slots up to each query's own, and the whole prompt if it is a prefix."""
        last = index + jnp.arange(length)[:, None]
        causal = slots[None, :] <= (jnp.maximum(last, P - 1) if bidirectional_prompt else last)
        # A padding query sees its own slot, so that no softmax is empty.
        return (real_BS[:, None, :] & causal[None]) | (slots[None, :] == last)[None]

    def extend(tokens: jax.Array, cache: Cache, index: jax.Array | int) -> tuple[jax.Array, Cache]:
        length = tokens.shape[1]
        positions = jnp.maximum(index + jnp.arange(length)[None, :] - pad_B[:, None], 0)
        return model.extend(tokens, cache, index, seen(index, length), positions)

    logits, cache = extend(prompt_BP, model.empty_cache(B, P + max_tokens), 0)
    return _sample(extend, cache, logits[:, -1], P, key, max_tokens, vocab_size, eos_id, sampling)


def _sample(
    extend: Extend, cache: Cache, logits_BV: jax.Array, start: int, key: jax.Array,
    max_tokens: int, vocab_size: int, eos_id: int, sampling: Sampling,
) -> jax.Array:  # fmt: skip
    """Draws tokens [B, T] until every row has its EOS; `start` slots of the cache are already written."""
    B = logits_BV.shape[0]

    def unfinished(carry) -> jax.Array:
        t, _, _, _, done_B = carry
        return (t < max_tokens) & ~jnp.all(done_B)

    def draw(carry):
        t, tokens_BT, logits_BV, cache, done_B = carry
        allowed = jnp.arange(logits_BV.shape[-1]) < vocab_size  # the model's table may be padded
        logits_BV = jnp.where(allowed & (jnp.arange(logits_BV.shape[-1]) != BOS), logits_BV, -jnp.inf)
        token_B = jnp.where(done_B, 0, sampling(logits_BV, jax.random.fold_in(key, t)))
        tokens_BT = jax.lax.dynamic_update_slice(tokens_BT, token_B[:, None], (0, t))
        done_B |= token_B == eos_id
        logits, cache = extend(token_B[:, None], cache, start + t)
        return t + 1, tokens_BT, whole_vocabulary(logits), cache, done_B

    tokens = sharding.full((B, max_tokens), ("batch", "length"), 0, jnp.int32)
    done = sharding.full((B,), ("batch",), False, jnp.bool_)
    carry = (jnp.int32(0), tokens, whole_vocabulary(logits_BV[:, None]), cache, done)
    return jax.lax.while_loop(unfinished, draw, carry)[1]


def whole_vocabulary(logits_B1V: jax.Array) -> jax.Array:
    """[B, V] with V on every device: sorting and drawing need it whole."""
    return sharding.constrain(logits_B1V, ("batch", None, None))[:, 0]
