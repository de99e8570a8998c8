"""What a model dir is: the config of one run, and what the run wrote."""

import contextlib
import dataclasses
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


def claim(
    model_dir: Path, config_text: str, difference: Callable[[str, str], list[str]], *, allow_change: bool
) -> None:
    """Makes `model_dir` the home of this run, or finds that it already is.

    Raises InputError if it holds another run (with what differs) or something that is no model dir.
    """
    path = model_dir / CONFIG
    if path.is_file():
        changes = difference(path.read_text(), config_text)
        if changes and not allow_change:
            raise InputError(
                f"{model_dir} holds a run with another config ({path.name} is -, this command is +): "
                + "; ".join(changes)
                + ". Use the same settings, another --model-dir, or --allow-config-change."
            )
    elif model_dir.exists() and (not model_dir.is_dir() or any(model_dir.iterdir())):
        raise InputError(f"{model_dir} is not empty and not a model dir; give a new or empty --model-dir.")
    model_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(config_text)
    temporary.replace(path)


def is_complete(model_dir: Path, steps: int) -> bool:
    """Whether the checkpoint of the last step is there."""
    return any(path.name.isdigit() and int(path.name) >= steps for path in (model_dir / DIRECTORY).glob("*"))


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
    run.check_batch(mesh.shape, jax.process_count())
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
