"""Choosing the next token.

Shapes: B batch, V vocab.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pretrain.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy; top_k keeps the k likeliest tokens, top_p the fewest that hold p of the mass.

    Both may be set: top_k first, then top_p of what it left (https://arxiv.org/abs/1904.09751).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature is {self.temperature}; give 0 (greedy) or a positive number.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise InputError(
                "--top-k and --top-p choose what to draw from, but --temperature 0 draws nothing; set it."
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"--top-k is {self.top_k}; give at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}; give a number above 0 and at most 1.")

    def __call__(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        """int32 [B], drawn independently for every row."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits = keep_likeliest(logits_BV / self.temperature, self.top_k, self.top_p)
        return jax.random.categorical(key, logits).astype(jnp.int32)


def keep_likeliest(logits_BV: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Logits with all but the likeliest at -inf. Ties with the last one kept stay too.

    >>> keep_likeliest(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), None, 0.6) > -jnp.inf
    Array([[ True,  True, False]], dtype=bool)
    """
    ordered = -jnp.sort(-logits_BV, axis=-1)
    lowest = ordered[:, -1:]
    if top_k is not None and top_k < logits_BV.shape[-1]:
        lowest = ordered[:, top_k - 1 : top_k]
        ordered = jnp.where(ordered >= lowest, ordered, -jnp.inf)
    if top_p is not None and top_p < 1.0:
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        lowest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= lowest, logits_BV, -jnp.inf)
