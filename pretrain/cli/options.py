"""What several commands share: gin bindings, model dirs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.cli.quiet import quiet_logs
from pretrain.errors import InputError

if TYPE_CHECKING:
    from pretrain.run import RunConfig

__all__ = ["GIN_CONTEXT", "bindings", "gin_arguments", "model_dir_run", "quiet_logs"]

GIN_CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True}


def gin_arguments(function: Callable) -> Callable:
    """Lets a command take any number of --gin.NAME=VALUE (or --gin.NAME VALUE)."""
    return click.argument("gin_flags", nargs=-1, type=click.UNPROCESSED, metavar="[--gin.NAME=VALUE]...")(
        function
    )


def bindings(flags: tuple[str, ...]) -> list[str]:
    """`NAME = VALUE` for each gin flag.

    >>> bindings(("--gin.STEPS=10", "--gin.SEED", "3"))
    ['STEPS = 10', 'SEED = 3']
    """
    result, rest = [], list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--gin."):
            raise InputError(
                f"Unexpected argument {flag!r}: settings are given as --gin.NAME=VALUE, options as -h shows."
            )
        name, equals, value = flag.removeprefix("--gin.").partition("=")
        if not equals:
            if not rest:
                raise InputError(f"{flag} has no value; write {flag}=VALUE.")
            value = rest.pop(0)
        result.append(f"{name} = {value}")
    return result


def model_dir_run(model_dir: Path, flags: tuple[str, ...] = ()) -> "RunConfig":
    """The run a model dir holds. Raises InputError if it is not a model dir."""
    from pretrain import config

    path = model_dir / config.FILE
    if not path.is_file():
        raise InputError(
            f"{model_dir} is not a model dir (it has no {config.FILE}): give the --model-dir of a training."
        )
    return config.load(path, bindings(flags))
