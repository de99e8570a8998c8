"""Losses, as sums with their weights: divide last, once, over the global batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.parallel import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
    """Float32 scalar sums over the weighted target tokens of a batch.

    loss: what is minimised (smoothed cross entropy + z-loss); nll: plain negative log likelihood in nats;
    z_loss: the z-loss part; correct: tokens whose argmax is right; weight: the weights.
    of_parts: [parts, 3], nll, correct and weight of each part of a mixture.
    """

    loss: jax.Array
    nll: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    weight: jax.Array
    of_parts: jax.Array


def token_cross_entropy(
    logits_BLV: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    part_ids_BL: jax.Array | None = None,
    *,
    num_parts: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenSums:
    """Softmax cross entropy with integer targets, T5X's definition of smoothing and z-loss.

    With smoothing e the target distribution is 1 - e on the target and e / (V - 1) on the others, and the
    entropy of that distribution is subtracted, so that a perfect model reaches 0. The z-loss is
    `z_loss * logsumexp(logits)^2` a token (https://arxiv.org/abs/2204.02311, section 5).

    logits float [B, L, V], targets int [B, L] in [0, V), weights float [B, L], part ids int [B, L] in
    [0, num_parts).
    """
    logits = logits_BLV.astype(jnp.float32)
    vocab = logits.shape[-1]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A one-hot product, not a gather: it works over a vocabulary that is cut across devices.
    ids = jnp.arange(vocab)
    one_hot = targets_BL[..., None] == ids
    nll = log_z - jnp.sum(jnp.where(one_hot, logits, 0.0), axis=-1)
    loss = nll
    if label_smoothing:
        low = label_smoothing / (vocab - 1)
        rest = vocab * log_z - jnp.sum(logits, axis=-1) - nll
        entropy = -(1 - label_smoothing) * jnp.log(1 - label_smoothing) - (vocab - 1) * low * jnp.log(low)
        loss = (1 - label_smoothing) * nll + low * rest - entropy
    z = z_loss * jnp.square(log_z)
    # argmax, the first of equals, as two reductions: jnp.argmax would gather a vocabulary that is cut.
    seen = jax.lax.stop_gradient(logits)
    best = jnp.min(jnp.where(seen == jnp.max(seen, axis=-1, keepdims=True), ids, vocab), axis=-1)
    of_tokens = (nll * weights_BL, (best == targets_BL) * weights_BL, weights_BL)
    return TokenSums(
        loss=jnp.sum((loss + z) * weights_BL),
        z_loss=jnp.sum(z * weights_BL),
        nll=jnp.sum(of_tokens[0]),
        correct=jnp.sum(of_tokens[1]),
        weight=jnp.sum(of_tokens[2]),
        of_parts=_by_part(of_tokens, part_ids_BL, num_parts),
    )


def _by_part(of_tokens: Sequence[jax.Array], part_ids_BL: jax.Array | None, num_parts: int) -> jax.Array:
    """[parts, sums], none without part ids."""
    if part_ids_BL is None:
        return jnp.zeros((0, len(of_tokens)), jnp.float32)
    return jnp.stack(
        [
            jnp.stack([jnp.sum(x_BL * (part_ids_BL == part)) for x_BL in of_tokens])
            for part in range(num_parts)
        ]
    )


def key_of(part: int, key: jax.Array | None) -> jax.Array | None:
    """The key for dropout of one of several losses."""
    return None if key is None else jax.random.fold_in(key, part)


def factors_of_means(weights: Sequence[jax.Array]) -> jax.Array:
    """float32 [losses] by which sums, over the weights of all, are the sum of each one's mean."""
    each = jnp.stack(weights)
    return jnp.sum(each) / jnp.maximum(each, 1.0)


def added(parts: Sequence[tuple[int, TokenSums, Any]], num_parts: int) -> TokenSums:
    """The sums of several losses in one.

    Args:
        parts: (number, its sums, factor of its loss) of each that there is.
        num_parts: how many there may be; what is not there has zeros in `of_parts`.
    """
    of_parts = jnp.zeros((num_parts, 3), jnp.float32)
    for number, sums, _ in parts:
        of_parts = of_parts.at[number].set(jnp.stack([sums.nll, sums.correct, sums.weight]))
    zero = jnp.zeros((), jnp.float32)
    return TokenSums(
        loss=sum((sums.loss * factor for _, sums, factor in parts), zero),
        nll=sum((sums.nll * factor for _, sums, factor in parts), zero),
        z_loss=sum((sums.z_loss * factor for _, sums, factor in parts), zero),
        correct=sum((sums.correct for _, sums, _ in parts), zero),
        weight=sum((sums.weight for _, sums, _ in parts), zero),
        of_parts=of_parts,
    )


def in_chunks(sums: Callable[..., TokenSums], parts: int) -> Callable[..., TokenSums]:
    """`sums` of arrays [B, L, ...] as the sum over so many parts of L, each computed again for the gradient.

    What a part makes, such as logits in float32 over a large vocabulary, is never held for the whole length.
    """
    if parts == 1:
        return sums

    def over_parts(*whole: jax.Array) -> TokenSums:
        def cut(x: jax.Array) -> jax.Array:
            # Part p has the positions p, p + parts, ...: every device finds its share among those it holds.
            rows, length, *rest = x.shape
            axes = ("batch", "length", None, *[None] * len(rest))
            return jnp.moveaxis(sharding.reshape(x, (rows, length // parts, parts, *rest), axes), 2, 0)

        def add(totals: TokenSums, part: tuple[jax.Array, ...]) -> tuple[TokenSums, None]:
            return jax.tree.map(jnp.add, totals, jax.checkpoint(sums)(*part)), None

        parts_of = tuple(cut(x) for x in whole)
        of_one = jax.eval_shape(sums, *(x[0] for x in parts_of))
        return jax.lax.scan(add, sharding.zeros_like(of_one), parts_of)[0]

    return over_parts


def pair_embeddings(
    model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None, chunks: int
) -> tuple[jax.Array, jax.Array]:
    """The vectors of both sides of the pairs, float32 [B, E] each.

    chunks: parts of the batch that are encoded one after the other, and again for the gradient: the exact
        gradient of a large batch in the memory of a part (the aim of https://arxiv.org/abs/2101.06983).
    """

    def both(part: tuple[jax.Array, Mapping[str, jax.Array]]) -> tuple[jax.Array, jax.Array]:
        number, rows = part
        keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, number))
        return model.embed(rows, "left", keys[0]), model.embed(rows, "right", keys[1])

    if chunks == 1:
        return both((jnp.zeros((), jnp.int32), batch))

    def cut(x_BL: jax.Array) -> jax.Array:
        # Part p has the rows p, p + chunks, ...: every device finds its share among the rows it holds.
        size, length = x_BL.shape
        x_RPL = sharding.reshape(x_BL, (size // chunks, chunks, length), ("batch", None, "length"))
        return jnp.moveaxis(x_RPL, 1, 0)

    def joined(x_PRE: jax.Array) -> jax.Array:
        _, _, size = x_PRE.shape
        return sharding.reshape(jnp.moveaxis(x_PRE, 0, 1), (-1, size), ("batch", None))

    left, right = jax.lax.map(jax.checkpoint(both), (jnp.arange(chunks), jax.tree.map(cut, dict(batch))))
    return joined(left), joined(right)


def pair_cross_entropy(
    left_BE: jax.Array, right_BE: jax.Array, real_B: jax.Array, scale: jax.Array, *, symmetric: bool = False
) -> TokenSums:
    """Cross entropy of which of all right vectors belongs to each left one: that of its row.

    Args:
        left_BE, right_BE: float32 vectors of length 1, of the global batch.
        real_B: bool, False for rows of padding, which neither ask nor answer.
        scale: what cosines are multiplied by.
        symmetric: also the other way round; the mean of both.

    Returns:
        Sums over the pairs; `correct` counts those whose own right vector is the most alike.
    """

    def one_way(asks_BE: jax.Array, answers_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
        everyone = ("batch", None)  # each row is compared with those of all devices
        answers_CE = sharding.constrain(answers_BE, (None, None))
        cosines_BC = sharding.einsum("BE,CE->BC", asks_BE, answers_CE, axes=everyone)
        logits_BC = jnp.where(sharding.constrain(real_B, (None,)), scale * cosines_BC, -1e9)
        rows = jnp.arange(logits_BC.shape[1])
        own_BC = sharding.constrain(rows[:, None] == rows[None, :], everyone)
        own_B = jnp.sum(jnp.where(own_BC, logits_BC, 0.0), axis=1)
        nll_B = jax.nn.logsumexp(logits_BC, axis=1) - own_B
        # Strictly: where all vectors are alike, no pair is told from the others.
        correct_B = own_B > jnp.max(jnp.where(own_BC, -jnp.inf, logits_BC), axis=1)
        return jnp.sum(jnp.where(real_B, nll_B, 0.0)), jnp.sum(real_B & correct_B, dtype=jnp.float32)

    ways = [one_way(left_BE, right_BE)]
    if symmetric:
        ways.append(one_way(right_BE, left_BE))
    nll, correct = (sum(each) / len(ways) for each in zip(*ways, strict=True))
    zero = jnp.zeros((), jnp.float32)
    weight = jnp.sum(real_B, dtype=jnp.float32)
    return TokenSums(nll, nll, zero, correct, weight, jnp.zeros((0, 3), jnp.float32))
