"""What a run costs on devices that are not here: its train step, compiled for them by their own compiler."""

import dataclasses
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pretrain import hlo, pipeline
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.parallel.topologies import Topology
from pretrain.run import RunConfig
from pretrain.training import hardware, state, step
from pretrain.training.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. temporaries: activations, gradients and what the compiler keeps beside them."""

    parameters: int
    optimizer: int
    batch: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.program


@dataclasses.dataclass  # not frozen: a traceback is put on it
class TooLarge(Exception):
    """The compiler refused: a device would need so many bytes of memory, and has so many for a program."""

    needed: float
    available: float

    def __str__(self) -> str:
        return f"{self.needed / 2**30:.2f} GiB of {self.available / 2**30:.2f}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A train step on a topology.

    model_flops: of the step, by the formula of docs/metrics.md; flops: of the matrix products that are
    computed, those of rematerialisation included; both over all devices. cost: of one device.
    chip: None for CPUs.
    """

    run: RunConfig
    topology: Topology
    mesh: Mapping[str, int]
    chip: Chip | None
    parameters: int
    memory: Memory
    model_flops: float
    flops: float
    cost: hlo.Cost
    compile_seconds: float

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def tokens(self) -> int:
        """Of a step, padding included."""
        return round(self.run.step_tokens())

    def bounds(self) -> dict[str, float]:
        """Seconds that a step takes at least, for each thing that it is made of. None known for CPUs."""
        if self.chip is None:
            return {}
        links = {False: 0.0, True: 0.0}
        for each in self.cost.collectives:
            links[each.between_slices] += each.link_bytes
        return {
            "compute": self.flops / self.devices / self.chip.flops,
            "memory": self.cost.bytes / self.chip.memory_bandwidth,
            "links": links[False] / self.chip.link_bandwidth,
            "links between slices": links[True] / self.chip.slice_bandwidth,
        }

    @property
    def compiler_seconds(self) -> float | None:
        """The compiler's own estimate of what it scheduled, without waiting for other devices.

        It has none for a kernel, which counts as what it needs longest for, at the chip's peak, where it says
        what that is.
        """
        if self.chip is None or not self.cost.cycles:
            return None
        peak, bandwidth = self.chip.flops, self.chip.memory_bandwidth
        kernels = sum(times * max(flops / peak, read / bandwidth) for times, flops, read in self.cost.kernels)
        return self.cost.cycles / self.chip.clock + kernels

    @property
    def seconds(self) -> float | None:
        """Of a step, at best: what it takes longest for, or the compiler's estimate if that is longer."""
        known = [*self.bounds().values(), self.compiler_seconds or 0.0]
        return max(known) if self.chip else None

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation, at best."""
        if self.chip is None or self.seconds is None:
            return None
        return self.model_flops / self.devices / self.chip.flops / self.seconds

    def figures(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "fits": True,
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "devices": self.devices,
            "mesh": dict(self.mesh),
            "batch_size": self.run.batch_size,
            "microbatches": self.run.microbatches,
            "remat": self.run.model.remat,
            "remat_keep": list(self.run.model.remat_keep),
            "remat_offload": list(self.run.model.remat_offload),
            "parameters": self.parameters,
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "device_memory": self.chip and self.chip.memory,
            "model_flops": self.model_flops,
            "flops": self.flops,
            "bytes_per_device": self.cost.bytes,
            "collectives": [
                {**dataclasses.asdict(each), "link_bytes": each.link_bytes} for each in self.cost.collectives
            ],
            "loops_counted_once": self.cost.searches,
            "bounds_seconds": self.bounds(),
            "compiler_seconds": self.compiler_seconds,
            "seconds": self.seconds,
            "utilisation": self.utilisation,
            "tokens_per_step": self.tokens,
            "tokens_per_second": self.seconds and self.tokens / self.seconds,
            "compile_seconds": self.compile_seconds,
        }


def plan(run: RunConfig, topology: Topology) -> Plan:
    """Compiles the train step of `run` for `topology`. Reads no data, and no vocabulary.

    Raises InputError if the run does not fit the devices' number, TooLarge if not their memory.
    """
    if run.objective.mixes == "batches":
        raise InputError(
            "RunConfig.objective has steps of several shapes (mixes='batches'): plan one of its parts at a "
            "time, as RunConfig.objective."
        )
    devices = topology.devices()
    mesh = run.mesh.build(devices)
    run.check_batch(mesh)
    with sharding.layout(mesh, run.rules):
        programs = step.programs(run, np.zeros(run.model.vocab_size, np.int32))
        abstract, batch = programs.abstract_state(), pipeline.abstract_batch(run, mesh)
        began = time.monotonic()
        traced = programs.train_step.trace(abstract, batch)
        compiled = _compiled(traced.lower())
        seconds = time.monotonic() - began
    return Plan(
        run=run,
        topology=topology,
        mesh=dict(mesh.shape),
        chip=None if topology.kind == "cpu" else hardware.CHIPS[devices[0].device_kind],
        parameters=state.count(abstract.params),
        memory=_memory(abstract, batch, compiled.memory_analysis()),
        model_flops=3 * run.step_flops(),
        flops=matrix_flops(traced.jaxpr.jaxpr),
        cost=hlo.cost(compiled.as_text() or "", len(devices), topology.slices),
        compile_seconds=seconds,
    )


# In the two ways of the TPU compiler: after it has placed all arrays, and before it tries to.
_USED = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        with warnings.catch_warnings():
            # JAX's cache keeps programs for devices that are not here, and cannot read them.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        for found in filter(None, (pattern.search(str(error)) for pattern in _USED)):
            needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            raise TooLarge(needed, available) from error
        raise


def _memory(abstract: state.TrainState, batch: Any, analysis: Any) -> Memory:
    parameters, optimizer, rows = (
        _local_bytes(tree) for tree in (abstract.params, abstract.opt_state, batch)
    )
    rest = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    rest -= parameters + optimizer + rows  # padding to tiles, keys, sums
    return Memory(
        parameters, optimizer, rows, analysis.temp_size_in_bytes + max(rest, 0),
        analysis.generated_code_size_in_bytes,
    )  # fmt: skip


def _local_bytes(tree: Any) -> int:
    """On one device; all have as much."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def matrix_flops(jaxpr: Any) -> float:
    """Floating point operations of all matrix products in a jaxpr, loops and kernels as often as they turn.

    >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
    >>> matrix_flops(jax.make_jaxpr(lambda x: x @ x.T)(x))
    256.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        total += _turns(equation) * sum(map(matrix_flops, _inside(equation.params.values())))
    return total


def _turns(equation: Any) -> int:
    """How often what is inside runs; a kernel of which all turns compute the same."""
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _inside(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _inside(value)


def smaller(run: RunConfig, devices: int) -> Iterator[tuple[str, RunConfig]]:
    """Ways to need less memory, each with those before it: what costs least speed comes first."""
    changes: list[str] = []
    model = type(run.model).__name__
    if run.model.remat != "full":
        run = dataclasses.replace(run, model=remat(run.model, "full"))
        changes.append(f"{model}.remat = 'full'")
        yield ", ".join(changes), run
    sizes = run.mesh.sizes(devices)
    if sizes["data"] > 1 and run.model.embed_dim % (sizes["data"] * sizes["fsdp"]) == 0:
        mesh = dataclasses.replace(run.mesh, data=1, fsdp=sizes["data"] * sizes["fsdp"])
        run = dataclasses.replace(run, mesh=mesh)
        changes += ["MeshConfig.data = 1", f"MeshConfig.fsdp = {mesh.fsdp}"]
        yield ", ".join(changes), run
    shares = run.rules.shares("batch", run.mesh.sizes(devices))
    for parts in (2, 4, 8, 16, 32, 64):
        if parts > run.microbatches and run.batch_size % (shares * parts) == 0:
            change = ", ".join([*changes, f"RunConfig.microbatches = {parts}"])
            yield change, dataclasses.replace(run, microbatches=parts)


def first_that_fits(run: RunConfig, topology: Topology) -> tuple[str, Plan] | None:
    """The first of the `smaller` ways whose program fits."""
    for change, other in smaller(run, len(topology.devices())):
        try:
            return change, plan(other, topology)
        except (TooLarge, InputError):  # a way that this run cannot go is none
            continue
    return None


def remat(model: Any, policy: str) -> Any:
    """`model` with another policy of rematerialisation."""
    return dataclasses.replace(model, remat=policy, remat_keep=(), remat_offload=())


def meshes(run: RunConfig, devices: int) -> list[MeshConfig]:
    """The mesh of `run`, and others for as many devices: cut along fsdp, data, both, and tensor."""
    sizes = run.mesh.sizes(devices)
    within = devices // (sizes["replica"] * sizes["context"])
    own = dataclasses.replace(run.mesh, **sizes)
    found = {own: None}  # a set that keeps its order
    for fsdp, tensor in ((within, 1), (1, 1), (4, 1), (16, 1), (within // 2, 2), (within // 4, 4)):
        if fsdp and within % (fsdp * tensor) == 0:
            data = within // fsdp // tensor
            found[dataclasses.replace(own, data=data, fsdp=fsdp, tensor=tensor)] = None
    return list(found)


def search(
    run: RunConfig, topology: Topology, tried: Callable[[RunConfig, Plan | Exception], None]
) -> list[Plan]:
    """Plans that fit, the fastest first by the tokens a second that they can reach.

    For each of `meshes` the least rematerialisation that fits, with the batch of `run` and, while that fits,
    with twice and four times as much.

    tried: told of each program that was compiled, with its plan or why there is none.
    """
    plans: list[Plan] = []
    for mesh in meshes(run, len(topology.devices())):
        policies = [remat(run.model, policy) for policy in ("none", "dots", "full")]
        if run.model.remat == "names":
            policies.insert(1, run.model)
        for batch_size in (run.batch_size, 2 * run.batch_size, 4 * run.batch_size):
            while policies:
                other = dataclasses.replace(run, mesh=mesh, batch_size=batch_size, model=policies[0])
                try:
                    plans.append(plan(other, topology))
                    tried(other, plans[-1])
                    break
                except TooLarge as error:
                    tried(other, error)
                    del policies[0]  # nor would it fit with a larger batch
                except InputError as error:
                    tried(other, error)
                    break
    return sorted(plans, key=lambda each: (each.seconds or 0.0) / each.tokens)
