"""softmax(q k + bias, where the mask lets it) v, in several ways that give the same.

Shapes: B batch, Q queries, K keys, N heads, M key/value heads, G = N / M queries that share a key head,
H head_dim. Queries are scaled by the caller; the softmax is float32; each names its result "mixed" for remat.

A backend that cannot do what it is asked refuses, in `check` before anything is traced where it can be known
there: one that leaves out a mask trains on what it must not see, and nobody is told
(https://github.com/AI-Hypercomputer/maxtext/issues/4476).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.errors import InputError
from pretrain.models import layers, recomputed
from pretrain.models.masks import Bias, Mask, Offset, Parts, Seen, bias_of, cut, joined, mask_of
from pretrain.models.products import HEADS, HIDDEN, by_head, grouped, scores, ungrouped, weighted
from pretrain.parallel import sharding


def plain(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """[B, Q, N, H], the scores [B, N, Q, K] in memory: the reference. 0 for a query that sees nothing.

    Where the length is cut, queries stay and keys and values are gathered: exact, and the memory of the
    scores is shared.
    """
    queries, keys = grouped(query_BQNH, key_BKMH.shape[2]), by_head(key_BKMH)
    raw = scores(queries, keys, seen, bias)
    # Of nothing but what is hidden, a softmax would give the mean.
    weights = jnp.where(jnp.max(raw, axis=-1, keepdims=True) > HIDDEN, jax.nn.softmax(raw, axis=-1), 0)
    weights = layers.dropout(weights.astype(value_BKMH.dtype), dropout, key)
    return checkpoint_name(ungrouped(weighted(weights, by_head(value_BKMH))), "mixed")


def chunked(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None, size: int = 512,
) -> jax.Array:  # fmt: skip
    """`plain` for at most about `size` queries at a time, each computed again in the backward pass.

    The memory is linear in the length: scores [B, N, size, K]. Exact, since every query sees all its keys at
    once; dropout draws other bits than `plain`.
    """
    Q = query_BQNH.shape[1]
    most = Q // sharding.shares("length")  # parts, where every device has queries of each
    fitting = (parts for parts in range(-(-Q // size), most) if Q % parts == 0 and most % parts == 0)
    number = next(fitting, most)
    if number == 1:
        return plain(query_BQNH, key_BKMH, value_BKMH, seen, bias, dropout=dropout, key=key)

    def part(key: jax.Array | None, query: jax.Array, of_mask: Any, of_bias: Any) -> jax.Array:
        own = seen_by(of_mask), offset_by(of_bias)
        return recomputed.mix(query, key_BKMH, value_BKMH, *own, key, dropout)

    of_masks, seen_by = _parts(seen, number, ("batch", "length", None))
    of_biases, offset_by = _parts(bias, number, ("heads", "length", None))
    queries = cut(query_BQNH, number, HEADS, 1)
    return joined(_one_by_one(part, key, (queries, of_masks, of_biases), number), HEADS, 1)


def rows(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """`plain` for one row of the batch at a time on every device, each computed again in the backward pass.

    The scores of a row [N, Q, K] stay in a CPU's cache; of a causal row, those of its first half with its
    second are not computed. Dropout draws other bits than `plain`, and others on a mesh that cuts the batch
    or the length otherwise.
    """
    bias_NQK = bias_of(bias)
    number = query_BQNH.shape[0] // sharding.shares("batch")
    pieces = _pieces(query_BQNH.shape[1], key_BKMH.shape[1], seen)

    def part(key: jax.Array | None, query: jax.Array, keys: jax.Array, value: jax.Array, of_mask: Any):
        own = seen_of(of_mask)
        if len(pieces) == 1:
            return recomputed.mix(query, keys, value, own, bias_NQK, key, dropout)
        mixed = [
            recomputed.mix(
                query[:, some], keys[:, :before], value[:, :before], own.among(some, before),
                None if bias_NQK is None else bias_NQK[:, some, :before],
                None if key is None else jax.random.fold_in(key, some.start), dropout,
            )
            for some, before in pieces
        ]  # fmt: skip
        return jnp.concatenate(mixed, axis=1)

    whole = ("batch", None, "heads", None)
    arrays, axes = (query_BQNH, key_BKMH, value_BKMH), (HEADS, whole, whole)
    parts = [cut(x, number, names, 0) for x, names in zip(arrays, axes, strict=True)]
    if isinstance(seen, Mask):
        of_masks, seen_of = seen.rows(number)
    else:
        of_masks, seen_of = cut(seen, number, ("batch", "length", None), 0), lambda part: part
    return joined(_one_by_one(part, key, (*parts, of_masks), number), HEADS, 0)


HALVED = 256  # queries of a causal row from which it pays to compute its halves by themselves


def _pieces(Q: int, K: int, seen: Seen) -> list[tuple[slice, int]]:
    """Queries that are computed together, and how many keys they may see."""
    within = isinstance(seen, Mask) and seen.causal and seen.prefix is None and Q == K
    if not within or Q < HALVED or Q % 2 or sharding.shares("length") > 1:
        return [(slice(0, Q), K)]
    return [(slice(0, Q // 2), Q // 2), (slice(Q // 2, Q), K)]


def _one_by_one(mix: Callable[..., jax.Array], key: jax.Array | None, parts: tuple, number: int) -> jax.Array:
    """[parts, ...] of `mix(key, *part)`."""

    def body(_: None, each: tuple) -> tuple[None, jax.Array]:
        index, *part = each
        return None, mix(None if key is None else jax.random.fold_in(key, index), *part)

    return jax.lax.scan(body, None, (jnp.arange(number), *parts))[1]


def _parts(x: Seen | Offset, number: int, axes: tuple[str | None, ...]) -> Parts:
    if isinstance(x, Mask | Bias):
        return x.parts(number)
    return (None if x is None else cut(x, number, axes, 1)), lambda part: part


def cudnn(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None, implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:  # fmt: skip
    """cuDNN's fused kernel, on GPUs; mask and bias are written out, the scores never are.

    What its backward pass needs has no name: rematerialised, it runs again even where "mixed" is kept.
    """
    if dropout and key is not None:
        raise InputError("attention='cudnn' has no dropout: set dropout to 0, or take 'chunked'.")
    if implementation == "cudnn":
        check_platform("cudnn", sharding.platform())
    mask_BQK, bias_NQK = mask_of(seen), bias_of(bias)
    strict = isinstance(seen, Mask) and seen.strict

    def local(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *bias: jax.Array):
        mixed = jax.nn.dot_product_attention(
            query, key, value, bias[0][None].astype(query.dtype) if bias else None, mask[:, None], scale=1.0,
            implementation=implementation,
        )  # fmt: skip
        # What sees nothing is given the mean of all.
        return jnp.where(jnp.any(mask, axis=-1)[:, :, None, None], mixed, 0) if strict else mixed

    whole = ("batch", None, "heads", None)
    axes: list[tuple[str | None, ...]] = [HEADS, whole, whole, ("batch", "length", None)]
    biases = [] if bias_NQK is None else [bias_NQK]
    axes += [("heads", "length", None)] * len(biases)
    mixed = sharding.each_device(local, axes, HEADS)(query_BQNH, key_BKMH, value_BKMH, mask_BQK, *biases)
    return checkpoint_name(mixed, "mixed")


def splash(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """The Pallas kernel that comes with JAX, on TPUs: it skips the blocks that nobody sees."""
    _check_splash(query_BQNH.shape, key_BKMH.shape, seen, bias, dropout if key is not None else 0.0)
    if not interpret:
        check_platform("splash", sharding.platform())
    assert isinstance(seen, Mask)
    causal = seen.causal
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def local(query: jax.Array, key: jax.Array, value: jax.Array, queries: jax.Array, keys: jax.Array):
        (B, Q, N, H), (_, K, M, _) = query.shape, key.shape
        of_a_head = masks.CausalMask((Q, K)) if causal else masks.FullMask((Q, K))
        size = next(size for size in (512, 256, 128) if Q % size == 0 and K % size == 0)
        blocks = kernels.BlockSizes(
            block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
            block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size,
        )  # fmt: skip
        kernel = kernels.make_splash_mqa(
            masks.MultiHeadMask([of_a_head] * (N // M)), block_sizes=blocks, head_shards=1, q_seq_shards=1,
            residual_checkpoint_name="mixed", interpret=interpret,
        )  # fmt: skip
        grouped = query.reshape(B, Q, M, N // M, H).transpose(0, 2, 3, 1, 4)  # [B, M, G, Q, H]
        segments = kernels.SegmentIds(queries, keys)
        of_a_key_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        mixed = jax.vmap(of_a_key_head)(
            grouped, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), segments
        )
        return mixed.transpose(0, 3, 1, 2, 4).reshape(B, Q, N, H).astype(query.dtype)

    rows = ("batch", None)
    whole = (*rows, "heads", None)
    axes = [whole, whole, whole, rows, rows]
    arrays = (query_BQNH, key_BKMH, value_BKMH, seen.query_segments, seen.key_segments)
    return sharding.each_device(local, axes, whole)(*arrays)


def fused(
    query_BQNH: jax.Array, key_BKMH: jax.Array, value_BKMH: jax.Array, seen: Seen, bias: Offset, *,
    dropout: float = 0.0, key: jax.Array | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """A kernel of our own for TPUs and short rows, with prefix and position bias: T5's case."""
    _check_fused(query_BQNH.shape, key_BKMH.shape[1], seen, dropout if key is not None else 0.0)
    if not interpret:
        check_platform("fused", sharding.platform())
    assert isinstance(seen, Mask)
    has_prefix, bias_NQK = seen.prefix is not None, bias_of(bias)

    def local(query, keys, value, queries_of, keys_of, *rest: jax.Array) -> jax.Array:
        from pretrain.models.fused import mix  # Pallas for TPUs takes a while to import

        prefix = rest[0] if has_prefix else None
        B, _, N, _ = query.shape
        beside = (x.reshape(B, x.shape[1], -1) for x in (query, keys, value))
        offset = None if bias_NQK is None else rest[-1]
        mixed = mix(*beside, queries_of, keys_of, prefix, offset, N, seen.causal, interpret)
        return mixed.reshape(query.shape)

    rows = ("batch", None)
    whole = (*rows, "heads", None)
    arrays = [query_BQNH, key_BKMH, value_BKMH, seen.query_segments, seen.key_segments]
    axes: list[tuple[str | None, ...]] = [whole, whole, whole, rows, rows]
    for array, names in ((seen.prefix, rows), (bias_NQK, ("heads", None, None))):
        if array is not None:
            arrays.append(array)
            axes.append(names)
    return checkpoint_name(sharding.each_device(local, axes, whole)(*arrays), "mixed")


def _check_fused(query_shape: tuple[int, ...], K: int, seen: Seen, dropout: float) -> None:
    """Raises InputError for what the kernel cannot do."""
    from pretrain.models.fused import LANES, MOST_SCORES, heads_of_a_turn

    _, Q, N, H = query_shape
    together = heads_of_a_turn(N, H)
    most = 2 * MOST_SCORES // max(2, together)
    reason = {
        "no dropout": dropout > 0,
        "no mask but segments, causal and prefix": not isinstance(seen, Mask) or seen.query_order is not None,
        f"no head_dim of {H}, which neither divides {LANES} nor is a multiple of it": LANES % H and H % LANES,
        f"no lengths of {Q} and {K}, whose product is above the {most} for {together} heads of {H} at a time":
            most < Q * K,
        "no length that is cut along the mesh": sharding.shares("length") > 1,
    }  # fmt: skip
    _refuse("fused", reason)


def _refuse(backend: str, reasons: Mapping[str, Any]) -> None:
    """Raises InputError for the first reason that holds."""
    for name, wrong in reasons.items():
        if wrong:
            raise InputError(f"attention={backend!r} takes {name}: use attention='chunked'.")


def _check_splash(
    query_shape: tuple[int, ...], key_shape: tuple[int, ...], seen: Seen, bias: Offset, dropout: float
) -> None:
    """Raises InputError for what the kernel cannot express."""
    from pretrain.models.fused import LANES

    reason = {
        "no position bias": bias is not None,
        "no dropout": dropout > 0,
        "no prefix": isinstance(seen, Mask) and seen.prefix is not None,
        "no mask but segments and causal": not isinstance(seen, Mask) or seen.query_order is not None,
        f"no head_dim of {query_shape[3]}, which is no multiple of {LANES}": query_shape[3] % LANES,
        f"no lengths of {query_shape[1]} and {key_shape[1]}, which are no multiples of {LANES}":
            query_shape[1] % LANES or key_shape[1] % LANES,
        "no length that is cut along the mesh": sharding.shares("length") > 1,
    }  # fmt: skip
    _refuse("splash", reason)


Backend = Callable[..., jax.Array]
BACKENDS: dict[str, Backend] = {
    "plain": plain, "rows": rows, "chunked": chunked, "cudnn": cudnn, "splash": splash, "fused": fused,
}  # fmt: skip
# What a stack writes out, once for all its layers.
WRITE_OUT_MASK, WRITE_OUT_BIAS = ("plain",), ("plain", "rows", "fused")


def named(name: str, chunk: int) -> Backend:
    return functools.partial(chunked, size=chunk) if name == "chunked" else BACKENDS[name]


def check_platform(name: str, platform: str) -> None:
    """Raises InputError where the backend is a kernel for other devices than these ("cpu", "gpu", "tpu")."""
    only = {"cudnn": "gpu", "splash": "tpu", "fused": "tpu"}.get(name, platform)
    words = f"no devices but {only.upper()}s, and these are {platform.upper()}s"
    _refuse(name, {words: only != platform})


def check(config: Any) -> None:
    """Raises InputError for a model config that its backend can never serve."""
    if config.attention in ("cudnn", "splash", "fused") and config.dropout > 0:
        raise InputError(
            f"Model attention={config.attention!r} has no dropout, but dropout={config.dropout}: set it to "
            "0, or take 'chunked'."
        )
    if config.attention in ("splash", "fused") and config.family == "two_stream":
        raise InputError(
            f"Model attention={config.attention!r} takes no order, and a two_stream model has one: take "
            "'chunked'."
        )
    if config.attention == "splash" and hasattr(config, "relative_buckets"):
        raise InputError("Model attention='splash' takes no position bias, and T5 has one: take 'chunked'.")
    if config.attention == "cudnn" and config.dtype != "bfloat16":
        raise InputError(f"Model attention='cudnn' needs dtype='bfloat16', not {config.dtype!r}.")
