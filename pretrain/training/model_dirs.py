"""What a model dir is: the config of one run, and what the run wrote."""

from collections.abc import Callable
from pathlib import Path

from pretrain.checkpointing import DIRECTORY
from pretrain.errors import InputError

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
