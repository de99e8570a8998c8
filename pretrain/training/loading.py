"""Parameters out of a checkpoint: to use them, or to begin another run with them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from pretrain.checkpointing import DIRECTORY, Checkpoints, Damaged
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training.state import Params
from pretrain.training.step import Programs, programs
from pretrain.trees import named_leaves, nested
from pretrain.warm_start import Plan, WarmStart


def warm_started(start: WarmStart, params: Params) -> tuple[Params, Plan]:
    """`params` with those that `start` takes in their places, laid out as they were; and what became of each.

    Raises InputError if the other run has no such checkpoint, or its parameters do not fit.
    """
    model_dir = Path(start.model_dir)
    if not (model_dir / DIRECTORY).is_dir():
        raise InputError(f"WarmStart.model_dir is {model_dir}, which has no checkpoints; give another run's.")
    with contextlib.closing(Checkpoints(model_dir, read_only=True)) as checkpoints:
        step = _chosen(start.step, checkpoints.steps(), model_dir)
        try:
            stored = checkpoints.shapes(step)
            stored = {
                name.removeprefix("params/"): shape
                for name, shape in stored.items()
                if name.startswith("params/")
            }
            fresh = named_leaves(params)
            plan = start.plan(stored, {name: leaf.shape for name, leaf in fresh.items()})
            wanted = {f"params/{name}": fresh[name] for name in plan.loaded}
            abstract = sharding.concrete(jax.eval_shape(lambda: wanted))
            restored = checkpoints.restore_some(step, abstract)
            taken = {name: restored[f"params/{name}"] for name in plan.loaded}
        except Damaged as error:
            raise InputError(f"{error} Give WarmStart another step, or a copy of that model dir.") from error
    return nested(fresh | taken), plan


def _chosen(step: int | None, steps: Sequence[int], model_dir: Path) -> int:
    """`step`, or the newest. Raises InputError if there is none."""
    if not steps:
        raise _untrained(model_dir)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise InputError(
            f"{model_dir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}."
        )
    return chosen


def _untrained(model_dir: Path) -> InputError:
    return InputError(f"{model_dir} has no checkpoint yet; train it first, with `pretrain train`.")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, ready to be used under the layout that `opened` puts in force."""

    step: int
    mesh: jax.sharding.Mesh
    programs: Programs
    params: Params


@contextlib.contextmanager
def opened(model_dir: Path, run: RunConfig, step: int | None = None) -> Iterator[Trained]:
    """The parameters of `step` (None: the newest checkpoint) on the run's mesh. Writes nothing.

    Raises InputError if there is no such checkpoint.
    """
    run.check()
    mesh = run.mesh.build()
    if not (model_dir / DIRECTORY).is_dir():
        raise _untrained(model_dir)
    with (
        contextlib.closing(Checkpoints(model_dir, read_only=True)) as checkpoints,
        sharding.layout(mesh, run.rules),
    ):
        steps = checkpoints.steps()
        step = _chosen(step, steps, model_dir)
        built = programs(run)
        try:
            params = checkpoints.restore_params(step, built.abstract_state().params)
        except Damaged as error:
            others = ", ".join(str(other) for other in steps if other != step)
            raise InputError(
                f"{error} Give the --step of another" + (f": {others}." if others else "; there is none.")
            ) from error
        yield Trained(step, mesh, built, params)
