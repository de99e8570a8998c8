"""What a model dir is: the config of one run, and what the run wrote."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pretrain.checkpointing import DIRECTORY
from pretrain.data.manifest import PARTIAL, lock_alone, replacing
from pretrain.errors import InputError

CONFIG = "config.gin"
LOCK = "lock"


Difference = Callable[[str, str], list[str]]


def refuse_another_run(
    model_dir: Path, config_text: str, difference: Difference, data_difference: Difference
) -> None:
    """Raises InputError if `model_dir` holds a run with another config (with what differs).

    A run without a checkpoint has nothing to lose: whoever mends its config may start it again.
    """
    if changes := _changes(model_dir, config_text, difference):
        # Of what the data come from nothing may change, so the flag would only lead to the next refusal.
        allowed = not _changes(model_dir, config_text, data_difference)
        raise InputError(
            f"{model_dir} holds a run with another config ({CONFIG} is -, this command is +): "
            f"{'; '.join(changes)}: use the same settings{',' if allowed else ' or'} another --model-dir"
            f"{', or --allow-config-change' if allowed else ''}."
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
        if any(path.name != LOCK and PARTIAL not in path.name for path in model_dir.iterdir()):
            raise InputError(
                f"{model_dir} is not empty and not a model dir; give a new or empty --model-dir."
            )
        return
    place = next(path for path in (model_dir, *model_dir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        trouble = "cannot be written to" if place.is_dir() else "is not a directory"
        raise InputError(f"{model_dir} cannot be made, since {place} {trouble}; give another --model-dir.")


@contextlib.contextmanager
def held(model_dir: Path) -> Iterator[None]:
    """Keeps other runs out of `model_dir`, which it makes; nothing is left if nobody claims it meanwhile.

    Raises InputError if another run holds it, or it cannot be written. The lock ends with the process.
    """
    if jax.process_index() != 0:
        yield
        return
    made = [path for path in (model_dir, *model_dir.absolute().parents) if not path.exists()]
    with _writable(model_dir):
        model_dir.mkdir(parents=True, exist_ok=True)
        lock = (model_dir / LOCK).open("a+")
    with lock:
        try:
            lock_alone(lock)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read() or "one that just began"
            raise InputError(
                f"{model_dir} is in use by another run, {who}: wait for it, or give another --model-dir."
            ) from None
        except OSError as error:
            raise InputError(
                f"{model_dir} is on a file system that locks no files ({error.strerror}): mount it with "
                "locks (Lustre: -o flock), or give another --model-dir."
            ) from error
        with _writable(model_dir):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        try:
            yield
        finally:
            if not (model_dir / CONFIG).exists():
                (model_dir / LOCK).unlink()
                for path in made:
                    path.rmdir()


def claim(model_dir: Path, config_text: str) -> None:
    """Makes `model_dir` the home of the run with this config; one process does it for all."""
    if jax.process_index() != 0:
        return
    with _writable(model_dir):
        model_dir.mkdir(parents=True, exist_ok=True)
        with replacing(model_dir / CONFIG) as temporary:
            temporary.write_text(config_text)


@contextlib.contextmanager
def _writable(model_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{model_dir} cannot be written ({error.strerror}): make it so, or give another --model-dir."
        ) from error


def latest_step(model_dir: Path) -> int:
    """The newest step with a whole checkpoint; 0 if there is none."""
    names = (path.name for path in (model_dir / DIRECTORY).glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)
