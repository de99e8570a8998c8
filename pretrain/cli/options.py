"""What several commands share: gin bindings, model dirs, processes."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.cli.quiet import quiet_logs
from pretrain.errors import InputError

if TYPE_CHECKING:
    from pretrain.run import RunConfig

__all__ = ["GIN_CONTEXT", "bindings", "gin_arguments", "of_processes", "quiet_logs", "run_of", "trained_run"]

GIN_CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True}


def gin_arguments(function: Callable) -> Callable:
    """Lets a command take any number of --gin.NAME=VALUE (or --gin.NAME VALUE), and of gin files."""
    metavar = "[OVER.gin]... [--gin.NAME=VALUE]..."
    return click.argument("gin_flags", nargs=-1, type=click.UNPROCESSED, metavar=metavar)(function)


def bindings(flags: tuple[str, ...]) -> list[str]:
    """`NAME = VALUE` for each gin flag, and an include for each file whose settings go over the run's.

    >>> bindings(("meshes/gpu_8.gin", "--gin.STEPS=10", "--gin.SEED", "3"))
    ["include 'meshes/gpu_8.gin'", 'STEPS = 10', 'SEED = 3']
    """
    result, rest = [], list(flags)
    while rest:
        flag = rest.pop(0)
        if flag.endswith(".gin") and not flag.startswith("-"):
            result.append(f"include '{flag}'")
            continue
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


def run_of(source: str, flags: tuple[str, ...] = ()) -> "RunConfig":
    """The run that a gin file says or a model dir holds. Raises InputError if it is neither."""
    from pretrain import config

    return config.load(source if _is_file(source) else _config_of(Path(source)), bindings(flags))


def trained_run(source: str, model_dir: Path | None, flags: tuple[str, ...]) -> tuple["RunConfig", Path]:
    """The run of `source`, and the model dir that has its parameters: `source` itself unless it is a file."""
    holder = model_dir or Path(source)
    if model_dir is None and _is_file(source):
        raise InputError(f"{source} says how to train a model and holds none: give --model-dir too.")
    _config_of(holder)
    return run_of(source, flags), holder


def _is_file(source: str) -> bool:
    """Whether it is a gin file, or the name of one that is shipped, and not a model dir."""
    return source.endswith(".gin") and not Path(source).is_dir()


def _config_of(model_dir: Path) -> Path:
    from pretrain import config

    path = model_dir / config.FILE
    if not path.is_file():
        from pretrain.checkpointing import ABOUT, DIRECTORY

        if kept := sorted((model_dir / DIRECTORY).glob(f"*/{ABOUT}")):
            raise InputError(
                f"{model_dir} has checkpoints but no {config.FILE}: bring it back, or write it anew, from "
                f"what stands under `config` in {kept[-1]}."
            )
        raise InputError(
            f"{model_dir} is not a model dir (it has no {config.FILE}): give the --model-dir of a training."
        )
    return path


def of_processes(function: Callable) -> Callable:
    """Lets a command run as several processes: it begins when all have come, and only the first prints."""

    @click.option(
        "--coordinator", metavar="HOST:PORT", help="Several processes meet here: at a free port of process 0."
    )
    @click.option("--processes", type=click.IntRange(min=1), help="How many processes there are.")
    @click.option("--process", type=click.IntRange(min=0), help="Which one this is, from 0.")
    @click.option("--cluster", is_flag=True, help="As the TPU pod, Slurm or Open MPI says that started this.")
    @click.option(
        "--initialization-timeout", type=click.FloatRange(min=0, min_open=True), default=60,
        show_default=True, metavar="SECONDS", help="How long the processes wait for each other to come.",
    )  # fmt: skip
    @click.option(
        "--heartbeat-timeout", type=click.IntRange(min=1), default=100, show_default=True, metavar="SECONDS",
        help="How long after one was killed the others, if they wait for it, end as well.",
    )  # fmt: skip
    @functools.wraps(function)
    def command(
        *, coordinator: str | None, processes: int | None, process: int | None,
        cluster: bool, initialization_timeout: float, heartbeat_timeout: int, **others: object,
    ) -> object:  # fmt: skip
        from pretrain.parallel.processes import Cluster, Place, joined

        alone = coordinator is None and processes is None and process is None
        if alone:
            with joined(Cluster() if cluster else None, initialization_timeout, heartbeat_timeout):
                return function(**others)
        if cluster:
            raise InputError(
                "--cluster says where the processes meet; leave --coordinator and the others away."
            )
        if coordinator is None or processes is None or process is None:
            raise InputError(
                "--coordinator, --processes and --process go together: give each process all three, or none."
            )
        with joined(Place(coordinator, processes, process), initialization_timeout, heartbeat_timeout):
            return function(**others)

    return command
