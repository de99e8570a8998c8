"""What a model dir is: the config of one run, and what the run wrote."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pretrain.checkpointing import DIRECTORY, Checkpoints
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training.state import Params
from pretrain.training.step import Programs, programs

CONFIG = "config.gin"


Difference = Callable[[str, str], list[str]]


def refuse_another_run(model_dir: Path, config_text: str, difference: Difference) -> None:
    """Raises InputError if `model_dir` holds a run with another config (with what differs).

    A run without a checkpoint has nothing to lose: whoever mends its config may start it again.
    """
    if changes := _changes(model_dir, config_text, difference):
        raise InputError(
            f"{model_dir} holds a run with another config ({CONFIG} is -, this command is +): "
            f"{'; '.join(changes)}: use the same settings, another --model-dir, or --allow-config-change."
        )


def refuse_other_data(model_dir: Path, config_text: str, difference: Difference) -> None:
    """Raises InputError if `model_dir` holds a run over other data: its place in them means nothing in these.

    TensorFlow would restore it all the same, and go on with the files and the buffers of before.
    """
    if changes := _changes(model_dir, config_text, difference):
        raise InputError(
            f"{model_dir} holds a run whose place in its data cannot be kept when these settings change: "
            f"{', '.join(changes)}: give them as they were, or another --model-dir."
        )


def _changes(model_dir: Path, config_text: str, difference: Difference) -> list[str]:
    return difference((model_dir / CONFIG).read_text(), config_text) if latest_step(model_dir) else []


def refuse_other_things(model_dir: Path) -> None:
    """Raises InputError unless `model_dir` is a model dir, or could become one."""
    if (model_dir / CONFIG).is_file():
        return
    if model_dir.is_dir():
        if any(path.name != f"{CONFIG}.tmp" for path in model_dir.iterdir()):
            raise InputError(
                f"{model_dir} is not empty and not a model dir; give a new or empty --model-dir."
            )
        return
    place = next(path for path in (model_dir, *model_dir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        trouble = "cannot be written to" if place.is_dir() else "is not a directory"
        raise InputError(f"{model_dir} cannot be made, since {place} {trouble}; give another --model-dir.")


def claim(model_dir: Path, config_text: str) -> None:
    """Makes `model_dir` the home of the run with this config; one process does it for all."""
    if jax.process_index() != 0:
        return
    model_dir.mkdir(parents=True, exist_ok=True)
    temporary = model_dir / f"{CONFIG}.tmp"
    temporary.write_text(config_text)
    temporary.replace(model_dir / CONFIG)


def latest_step(model_dir: Path) -> int:
    """The newest step with a whole checkpoint; 0 if there is none."""
    names = (path.name for path in (model_dir / DIRECTORY).glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


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
        raise InputError(f"{model_dir} has no checkpoint yet; train it first, with `pretrain train`.")
    checkpoints = Checkpoints(model_dir, read_only=True)
    steps = checkpoints.steps()
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise InputError(
            f"{model_dir} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}."
        )
    with sharding.layout(mesh, run.rules):
        built = programs(run)
        params = checkpoints.restore_params(step, built.abstract_state().params)
        yield Trained(step, mesh, built, params)
