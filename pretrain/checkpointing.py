"""Checkpoints: state, data position and config of a step, saved together by Orbax or not at all.

`checkpoints/STEP/` holds `state` (sharded arrays), `data` (one file set a process) and `config` (JSON: the
config's text, a fingerprint of every array, and the sums of steps that no line of figures has yet). Orbax
writes into a temporary directory and renames it: one with a number for a name was whole when it was written.
"""

import dataclasses
import errno
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pretrain import positions
from pretrain.data.manifest import checksum_of
from pretrain.errors import InputError
from pretrain.fingerprint import fingerprint
from pretrain.indexed import IndexedBatches
from pretrain.parallel import processes
from pretrain.pipeline import Batches as StreamedBatches
from pretrain.pipeline import read_iterator
from pretrain.trees import named_leaves, with_leaves

Batches = StreamedBatches | IndexedBatches
Sums = Mapping[str, float]
Shapes = dict[str, tuple[int, ...]]

DIRECTORY = "checkpoints"
DAMAGED = "damaged"
ABOUT = Path("config") / "metadata"

_fingerprint = jax.jit(fingerprint)


class Damaged(RuntimeError):
    """A checkpoint whose files are not what was written."""


class NotSaved(RuntimeError):
    """A checkpoint that could not be written; those before it are as they were."""


class _FilesHandler(ocp.AsyncCheckpointHandler):
    """Lets every process write files of its own into an item, while the loop goes on."""

    async def async_save(self, directory: epath.Path, args: "_FilesSave") -> list[ocp.future.Future]:
        async def write() -> None:
            for path in args.write(Path(directory)):
                _sync(path)

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="files")]

    def save(self, directory: epath.Path, args: ocp.args.CheckpointArgs) -> None:
        raise NotImplementedError("`Checkpoints.save` is asynchronous")

    def restore(self, directory: epath.Path, args: ocp.args.CheckpointArgs | None = None) -> None:
        raise NotImplementedError("`Checkpoints.restore` reads them")


@ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _FilesSave(ocp.args.CheckpointArgs):
    write: Callable[[Path], Iterable[Path]]  # into a directory; returns its files


def _sync(path: Path) -> None:
    """Its contents survive a loss of power; TensorStore does as much for the arrays."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class _Manager(ocp.CheckpointManager):
    """Does not ask JAX itself whether the run is to stop.

    It would from a thread of its own and by the numbers of older steps, and by those numbers the processes
    agree where to stop (`training/stopping.py`).
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one model directory.

    keep: the newest so many stay; period: and every multiple of so many steps, for ever (None: none).
    """

    def __init__(
        self, model_dir: Path, *, keep: int | None = None, period: int | None = None, read_only=False
    ):
        self.directory = model_dir.resolve() / DIRECTORY
        self._damaged = model_dir.resolve() / DAMAGED
        self._unseen = False  # how a save ended
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=period,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                # Where one cannot be made in the background, others wait for it, for five minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, batches: Batches, config_text: str, window: Sequence[Sums] = ()
    ) -> None:
        """Begins to save; returns when the arrays are copied and the data position is taken.

        All else happens in the background. window: the sums of the steps since the last line of figures.

        Raises NotSaved if this save, or the one before, failed.
        """
        sums = _fingerprint(state)  # before the next step, which takes the buffers of `state`; fetched later
        about = {"config": config_text, "window": list(window)}
        write_position = batches.snapshot()
        with self._saving(step):
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=_FilesSave(functools.partial(_write_position, write=write_position)),
                    config=_FilesSave(functools.partial(_write_about, about=about, sums=sums)),
                ),
            )
        self._unseen = True
        if not begun:
            raise RuntimeError(f"Orbax declined to save step {step} in {self.directory}.")

    def restore_newest(
        self, abstract_state: Any, batches: Batches, say: Callable[[str], None],
        anew: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> tuple[int, Any]:  # fmt: skip
        """(step, state) of the newest checkpoint that is sound, with `batches` moved there.

        anew: arrays by name, for a checkpoint that has none of that name and shape.

        One that is damaged is said and moved aside, into `damaged/`, once another was found to go on from.

        Raises InputError if it holds other arrays or positions, or if none is sound.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, abstract_state, batches, anew)
            except Damaged as error:
                damaged[step] = error
                continue
            for bad, damage in damaged.items():
                say(f"{damage} Moved to {self._damaged / str(bad)}; going on from step {step}.")
                self._set_aside(bad)
            return step, state
        raise InputError(
            f"No checkpoint in {self.directory} is sound ({'; '.join(map(str, damaged.values()))}): bring "
            "back a copy of one, or start in another --model-dir."
        )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(free_name(self._damaged / str(step)))
        processes.sync(f"set aside {step}")
        self._manager.reload()

    # Reading: each process reads for itself, by Orbax's handlers and not its manager, in which the others
    # would wait for one that fails. Then all agree whether it went well, and only then compute together.

    def restore(
        self, step: int, abstract_state: Any, batches: Batches,
        anew: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> Any:  # fmt: skip
        """The state of `step`, laid out like the shapes of `abstract_state`; moves `batches` there.

        Raises InputError if the checkpoint holds other arrays, Damaged if it is not as it was written.
        """
        with self._reading(step) as path:
            stored = _stored_shapes(path)
            begun = {name: array for name, array in anew.items() if stored.get(name) != array.shape}
            wanted = {name: x for name, x in named_leaves(abstract_state).items() if name not in begun}
            _check_arrays(path, wanted, stored)
            arrays = _read(path, wanted)
            written = about(path)["fingerprint"]
            _restore_data(path / "data", batches)
        self._check_bits(step, arrays, written)
        return with_leaves(abstract_state, {**arrays, **begun})

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """The parameters alone: what evaluation and generation need, without reading the optimizer state.

        Raises InputError if the checkpoint holds others, Damaged if it is not as it was written.
        """
        abstract = {"params": abstract_params}
        with self._reading(step) as path:
            _check_arrays(path, named_leaves(abstract), _stored_shapes(path))
        return with_leaves(abstract, self.restore_some(step, named_leaves(abstract)))["params"]

    def check(self, step: int, abstract_state: Any) -> None:
        """Raises Damaged if its position, or what it has of these arrays, is not what was saved."""
        with self._reading(step) as path:
            stored = _stored_shapes(path)
            for place in (path / "data").glob("iterator_*.json"):
                positions.read(place.with_suffix(""))
            for place in (path / "data").glob("iterator_*.index"):
                read_iterator(place.with_suffix(""))
        known = named_leaves(abstract_state).items()
        self.restore_some(step, {name: leaf for name, leaf in known if stored.get(name) == leaf.shape})

    def restore_some(self, step: int, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        """These arrays of the checkpoint by name, and no others. Raises Damaged."""
        with self._reading(step) as path:
            arrays = _read(path, wanted)
            written = about(path)["fingerprint"]
        self._check_bits(step, arrays, written)
        return arrays

    def shapes(self, step: int) -> Shapes:
        """The shape of every array in the checkpoint, by name. Raises Damaged."""
        with self._reading(step) as path:
            return _stored_shapes(path)

    def window(self, step: int) -> list[Sums]:
        """What `save` was given as such. Raises Damaged."""
        with self._reading(step) as path:
            return about(path)["window"]

    def _check_bits(self, step: int, arrays: Mapping[str, jax.Array], written: Mapping[str, int]) -> None:
        """Raises Damaged if an array is not the one that was saved."""
        for name, value in jax.device_get(_fingerprint(arrays)).items():
            if written[name] != int(value):
                raise self._damage(step, f"{name} is not what was saved")

    def _damage(self, step: int, why: str) -> Damaged:
        return Damaged(f"Checkpoint {self.directory / str(step)} is damaged ({why}).")

    @contextmanager
    def _reading(self, step: int) -> Iterator[Path]:
        """Raises on all processes if one of them could not read.

        Damaged stands for whatever a broken file makes Orbax, TensorStore or TensorFlow raise, which have no
        error in common for it. What may pass, such as a lack of memory or of file handles, is no damage.
        """
        failure: Exception | None = None
        path = self.directory / str(step)
        try:
            yield path
        except Exception as error:
            failure = error
        if failure is not None and not path.exists():
            failure = InputError(f"{path} was removed while it was read: name another step.")
        passing = failure is not None and _is_no_damage(failure)
        worst = processes.largest(0 if failure is None else 2 if passing else 1)
        if failure is not None and (passing or isinstance(failure, Damaged)):
            raise failure
        if worst == 2:
            raise RuntimeError(f"Another process could not read {path}; see what it says.") from failure
        if worst == 1:
            raise self._damage(
                step, _reason(failure) if failure else "another process cannot read it"
            ) from failure

    @contextmanager
    def _saving(self, step: int | None = None) -> Iterator[None]:
        """Turns what goes wrong with the disk into NotSaved; Orbax tells it late, and in many ways."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            which = f"of step {step} or the one before it" if step else "that was being written"
            raise NotSaved(
                f"The checkpoint {which} could not be saved in {self.directory} ({_reason(error)})."
            ) from error

    def check_saved(self) -> None:
        """Raises NotSaved if the save that began last has failed; waits for none."""
        if self._unseen and not self._manager.is_saving_in_progress():
            self._unseen = False
            self.wait()

    def wait(self) -> None:
        """Returns when everything that was saved is on disk; raises NotSaved if something was not."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Raises NotSaved if something that was saved is not on disk."""
        with self._saving():
            self._manager.close()


def position(model_dir: Path, step: int) -> int:
    """The position of the batch that the run would read after `step`."""
    return positions.read(_any_position(model_dir / DIRECTORY / str(step) / "data"))


def about(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `config`, `fingerprint`, `window`. Raises ValueError."""
    said = json.loads((path / ABOUT).read_text())
    if said.pop("checksum", None) != checksum_of(said):
        raise ValueError("its config is not what was written")
    return said


def _write_about(directory: Path, about: Mapping[str, Any], sums: Mapping[str, jax.Array]) -> list[Path]:
    if jax.process_index() != 0:
        return []
    said = {**about, "fingerprint": {name: int(value) for name, value in jax.device_get(sums).items()}}
    path = directory / ABOUT.name
    path.write_text(json.dumps({**said, "checksum": checksum_of(said)}))
    return [path]


def _write_position(directory: Path, write: Callable[[Path], None]) -> Iterable[Path]:
    place = _position_file(directory)
    write(place)
    return directory.glob(f"{place.name}*")


def _item(path: Path, name: str) -> epath.Path:
    return epath.Path(path / name)


def _position_file(directory: Path) -> Path:
    """Where this process keeps its place in the data; more than one file may begin so."""
    return directory / f"iterator_{jax.process_index():05d}_of_{jax.process_count():05d}"


def _any_position(directory: Path) -> Path:
    """The data position of some process: all are at the same batch."""
    return min(directory.glob("iterator_*.json")).with_suffix("")


def _restore_data(directory: Path, batches: Batches) -> None:
    """Moves `batches` to the place in `directory`. Raises InputError if they cannot be moved there."""
    if batches.elastic:
        batches.restore(_any_position(directory))
        return
    counts = {int(each.name.split(".")[0].rpartition("_")[2]) for each in directory.glob("iterator_*")}
    if counts and jax.process_count() not in counts:
        raise InputError(
            f"{directory} holds the data positions of {min(counts)} process(es), but this run has "
            f"{jax.process_count()}, and in a stream each has its own: start {min(counts)} to keep all, or "
            "keep the parameters alone: in a new --model-dir, with this one as RunConfig.warm_start, read a "
            "store (`pretrain cache`), with which any number of processes goes on."
        )
    batches.restore(_position_file(directory))


def _stored(path: Path) -> Any:
    """The tree of the checkpoint, a description of an array at each leaf."""
    metadata = ocp.StandardCheckpointHandler().metadata(_item(path, "state"))
    return getattr(metadata, "tree", metadata)


def _stored_shapes(path: Path) -> Shapes:
    return _shapes(named_leaves(_stored(path)))


def _read(path: Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """By name: an optimizer's tree may differ in what holds no arrays, as without weight decay."""
    stored = _stored(path)
    tree = with_leaves(stored, {name: wanted.get(name, ocp.PLACEHOLDER) for name in named_leaves(stored)})
    how = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    arrays = named_leaves(ocp.PyTreeCheckpointHandler().restore(_item(path, "state"), args=how))
    return {name: arrays[name] for name in wanted}


def _check_arrays(path: Path, wanted: Mapping[str, Any], stored: Shapes) -> None:
    """Raises InputError unless the checkpoint has just the arrays that `wanted` has, entry by entry."""
    shapes = _shapes(wanted)
    entries = {name.split("/")[0] for name in shapes}
    stored = {name: shape for name, shape in stored.items() if name.split("/")[0] in entries}
    wrong = [name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name)]
    if wrong:
        # A parameter if there is one: the optimizer's arrays only follow them.
        name = min(wrong, key=lambda name: (not name.startswith("params"), name))
        raise InputError(
            f"{name} has shape {stored.get(name, 'none')} in checkpoint {path} but by this config "
            f"{shapes.get(name, 'none')}: use the model and optimizer that wrote it, or a new model dir."
        )


_MAY_PASS = re.compile(r"\b(RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|ABORTED)\b")


def _is_no_damage(error: BaseException) -> bool:
    if error.__cause__ is not None and _is_no_damage(error.__cause__):
        return True
    if isinstance(error, InputError | MemoryError | jax.errors.JaxRuntimeError):
        return True
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return error.errno not in (None, errno.EIO)  # a sector that cannot be read does not heal
    return bool(_MAY_PASS.search(str(error)))  # of TensorStore and TensorFlow, which have codes of their own


def free_name(path: Path) -> Path:
    """`path`, or with .1, .2, ... behind it where there is one already."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 10_000)))
    return next(name for name in names if not name.exists())


def _reason(error: BaseException) -> str:
    """What went wrong at the root, in a line: Orbax wraps TensorStore's words into pages of settings."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\{\{function_node .*?\}\} ", "", first)[:300]


def _shapes(leaves: Mapping[str, Any]) -> Shapes:
    return {name: leaf.shape for name, leaf in leaves.items()}
