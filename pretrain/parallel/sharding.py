"""Every layout decision: logical axis names, the rules that map them to mesh axes, and a few helpers.

Models name the axes of what they make (`batch`, `length`, `embed`, ...); `Rules`, from gin, say which mesh
axes those names lie along; `layout(mesh, rules)` puts both in force while a program is traced. The mesh is
Explicit: shardings are part of array types, so optimizer state and restored checkpoints follow the
parameters without being told. Outside a `layout` the helpers are plain jnp, on one device.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pretrain.errors import InputError

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which mesh axes each logical axis is cut along; None is not cut.

    A mesh axis serves one dimension of an array, the first that asks: with `batch` along `fsdp`,
    activations [batch, length, embed] keep `embed` whole while parameters [embed, mlp] cut it.
    """

    batch: MeshAxes = ("replica", "data", "fsdp")
    length: MeshAxes = "context"
    embed: MeshAxes = "fsdp"
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    vocab: MeshAxes = "tensor"

    def shares(self, axis: str, mesh_shape: Mapping[str, int]) -> int:
        """Into how many parts a logical axis is cut.

        >>> Rules().shares("batch", {"replica": 1, "data": 4, "fsdp": 2, "context": 1, "tensor": 1})
        8
        """
        along = getattr(self, axis)
        return math.prod(mesh_shape[name] for name in ((along,) if isinstance(along, str) else along or ()))

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The partition spec of an array whose dimensions have these logical names.

        >>> tuple(Rules().spec(("batch", "length", "embed")))
        (('replica', 'data', 'fsdp'), 'context', None)
        >>> Rules().spec(("embed", "mlp")) == PartitionSpec("fsdp", "tensor")
        True
        """
        used: set[str] = set()
        entries: list[MeshAxes] = []
        for axis in axes:
            wanted = getattr(self, axis) if axis else None
            wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())
            free = tuple(name for name in wanted if name not in used)
            used.update(free)
            entries.append(free[0] if len(free) == 1 else free or None)
        return PartitionSpec(*entries)


_rules: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("rules", default=None)
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def layout(mesh: jax.sharding.Mesh, rules: Rules) -> Iterator[None]:
    """Programs traced inside lie on `mesh` by `rules`."""
    check_rules(rules, mesh.shape)
    token, platform_token = _rules.set(rules), _platform.set(mesh.devices.flat[0].platform)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _rules.reset(token)
        _platform.reset(platform_token)


def platform() -> str:
    """What the devices of the current layout are, which need not be of this machine: "cpu", "gpu", "tpu"."""
    return _platform.get() or jax.default_backend()


def check_rules(rules: Rules, mesh_shape: Mapping[str, int]) -> None:
    """Raises InputError if a rule names an axis the mesh does not have."""
    for field in dataclasses.fields(rules):
        value = getattr(rules, field.name)
        for axis in (value,) if isinstance(value, str) else value or ():
            if axis not in mesh_shape:
                raise InputError(
                    f"Rules.{field.name} names mesh axis {axis!r}; the mesh has {', '.join(mesh_shape)}."
                )


def spec(axes: Sequence[str | None]) -> PartitionSpec | None:
    """The partition spec of these logical axes under the current layout; None outside of one."""
    rules = _rules.get()
    return None if rules is None else rules.spec(axes)


def named(mesh: jax.sharding.Mesh, rules: Rules, axes: Sequence[str | None]) -> NamedSharding:
    """The sharding of an array that lives outside a traced program, such as a batch."""
    return NamedSharding(mesh, rules.spec(axes))


@functools.lru_cache(maxsize=16)  # asked at every step
def rows_of_processes(mesh: jax.sharding.Mesh, rules: Rules, batch_size: int) -> dict[int, tuple[int, ...]]:
    """Which rows of a global batch the devices of each process hold, in order."""
    rows: dict[int, set[int]] = {}
    parts = named(mesh, rules, ("batch",)).devices_indices_map((batch_size,))
    for device in mesh.devices.flat:
        rows.setdefault(device.process_index, set()).update(range(batch_size)[parts[device][0]])
    return {process: tuple(sorted(held)) for process, held in sorted(rows.items())}


def local_rows(batch_size: int) -> tuple[int, ...]:
    """Which rows of a global batch the devices of this process hold, under the current layout."""
    rules = _rules.get()
    if rules is None or jax.process_count() == 1:
        return tuple(range(batch_size))
    return rows_of_processes(jax.sharding.get_mesh(), rules, batch_size)[jax.process_index()]


def local_share(batch_size: int) -> tuple[int, int]:
    """(index, count): which share of the rows this process feeds, under the current layout.

    Processes that hold the same rows, since another axis than the batch's lies between them, have one index.
    """
    rules = _rules.get()
    if rules is None or jax.process_count() == 1:
        return jax.process_index(), jax.process_count()
    rows = rows_of_processes(jax.sharding.get_mesh(), rules, batch_size)
    shares = sorted(set(rows.values()))
    return shares.index(rows[jax.process_index()]), len(shares)


def check_divides(shape: Sequence[int], axes: Sequence[str | None]) -> None:
    """Raises InputError if a dimension of `shape` cannot be cut evenly as the rules say."""
    mesh = jax.sharding.get_abstract_mesh()
    for size, axis, along in zip(shape, axes, spec(axes) or (None,) * len(shape), strict=True):
        names = (along,) if isinstance(along, str) else along or ()
        shares = math.prod(mesh.shape[name] for name in names)
        if size % shares:
            raise InputError(
                f"The {axis} dimension of a parameter, {size}, does not divide into the {shares} shares of "
                f"mesh axis {', '.join(names)}; change the mesh, the model or Rules.{axis}."
            )


def concrete(abstract: Any) -> Any:
    """The shapes that `jax.eval_shape` gives, on the devices of the current mesh."""
    mesh = jax.sharding.get_mesh()

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, abstract)


def normal(key: jax.Array, shape: Sequence[int], axes: Sequence[str | None], stddev: float) -> jax.Array:
    """Float32 N(0, stddev^2), each device making its own part; the values do not depend on the mesh."""
    check_divides(shape, axes)
    return stddev * jax.random.normal(key, shape, jnp.float32, out_sharding=spec(axes))


def full(shape: Sequence[int], axes: Sequence[str | None], value: float, dtype=jnp.float32) -> jax.Array:
    """An array of one value, laid out by its logical axes."""
    return jnp.full(shape, value, dtype, out_sharding=spec(axes))


def zeros_like(abstract: Any) -> Any:
    """Zeros of the shapes, dtypes and layouts that `jax.eval_shape` gives."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, out_sharding=leaf.sharding and leaf.sharding.spec),
        abstract,
    )


def einsum(subscripts: str, *operands: jax.Array, axes: Sequence[str | None], dtype=None) -> jax.Array:
    """jnp.einsum whose result is laid out by the logical `axes`; `dtype` is that of the accumulator."""
    return jnp.einsum(subscripts, *operands, out_sharding=spec(axes), preferred_element_type=dtype)


def matmul(x: jax.Array, weight: jax.Array, axes: Sequence[str | None], dtype=None) -> jax.Array:
    """x [B, L, I] times a float32 weight [I, O] in x's dtype, laid out by `axes`; `dtype` as of einsum.

    The weight's gradient is computed with the larger of I and O last, and transposed after where that is I:
    XLA's CPU compiler makes a transposed copy of the first operand, x or the incoming gradient, and puts into
    it also what it was computed from.
    """
    return _matmul(x, weight, spec(axes), dtype)


def _product(x: jax.Array, weight: jax.Array, out: PartitionSpec | None, dtype) -> jax.Array:
    weight = weight.astype(x.dtype)
    return jnp.einsum("BLI,IO->BLO", x, weight, out_sharding=out, preferred_element_type=dtype)


_matmul = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _matmul_forward(x: jax.Array, weight: jax.Array, out: PartitionSpec | None, dtype) -> tuple:
    return _product(x, weight, out, dtype), (x, weight)  # bare, where a policy of jax.checkpoint sees it


def _matmul_backward(
    _out: PartitionSpec | None, _dtype, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = operands
    of_x, of_weight = jax.typeof(x).sharding, jax.typeof(weight).sharding
    dx = jnp.einsum("BLO,IO->BLI", gradient, weight.astype(x.dtype), out_sharding=of_x)
    if weight.shape[0] <= weight.shape[1]:
        dw = jnp.einsum("BLI,BLO->IO", x, gradient, out_sharding=of_weight)
    else:
        rows, columns = (*of_weight.spec, None, None)[:2]
        across = of_weight.update(spec=PartitionSpec(columns, rows))
        dw = jnp.einsum("BLO,BLI->OI", gradient, x, out_sharding=across).T
    return dx.astype(x.dtype), dw.astype(weight.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def take(table: jax.Array, ids: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Rows of `table` [n, ...] by integer `ids` [...], laid out by `axes`."""
    return table.at[ids].get(out_sharding=spec(axes), mode="clip")


def reshape(x: jax.Array, shape: Sequence[int], axes: Sequence[str | None]) -> jax.Array:
    """`x` in another shape, laid out by `axes`."""
    return jnp.reshape(x, shape, out_sharding=spec(axes))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """`x`, moved if it must be to lie by `axes`."""
    wanted = spec(axes)
    return x if wanted is None else jax.sharding.reshard(x, wanted)


def shares(axis: str) -> int:
    """Into how many parts a logical axis is cut under the current layout."""
    rules = _rules.get()
    return 1 if rules is None else rules.shares(axis, jax.sharding.get_abstract_mesh().shape)


def each_device(
    function: Callable[..., jax.Array], axes: Sequence[Sequence[str | None]], result: Sequence[str | None]
) -> Callable[..., jax.Array]:
    """`function` of what each device has of its arguments, whose logical axes are `axes`: a kernel's way."""
    rules = _rules.get()
    if rules is None:
        return function
    specs = tuple(rules.spec(each) for each in axes)

    def placed(*arrays: jax.Array) -> jax.Array:
        moved = [constrain(array, each) for array, each in zip(arrays, axes, strict=True)]
        return jax.shard_map(function, in_specs=specs, out_specs=rules.spec(result), check_vma=False)(*moved)

    return placed
