"""Checkpoints: state, data position and config of a step, saved together by Orbax or not at all.

`checkpoints/STEP/` holds `state` (sharded arrays), `data` (one file set a process) and `config` (JSON: the
config's text, and a fingerprint of every array). Orbax writes into a temporary directory and renames it: a
directory with a number for a name was whole when it was written.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pretrain.errors import InputError
from pretrain.fingerprint import fingerprint
from pretrain.indexed import IndexedBatches
from pretrain.parallel import processes
from pretrain.pipeline import Batches as StreamedBatches
from pretrain.trees import named_leaves

Batches = StreamedBatches | IndexedBatches

DIRECTORY = "checkpoints"
DAMAGED = "damaged"

_fingerprint = jax.jit(fingerprint)


class Damaged(RuntimeError):
    """A checkpoint whose files are not what was written."""


class NotSaved(RuntimeError):
    """A checkpoint that could not be written; those before it are as they were."""


class _DataHandler(ocp.CheckpointHandler):
    """Lets every process write and read the position of its own data iterator.

    Not asynchronous: the iterator moves on with the next step, so its position is taken while the loop waits.
    """

    def save(self, directory: epath.Path, args: "_DataSave") -> None:
        args.batches.save(self._path(directory, jax.process_index(), jax.process_count()))

    def restore(self, directory: epath.Path, args: "_DataRestore") -> Batches:
        if args.batches.elastic:
            args.batches.restore(_any_position(Path(directory)))
            return args.batches
        path = self._path(directory, jax.process_index(), jax.process_count())
        counts = {int(each.name.split(".")[0].rpartition("_")[2]) for each in directory.glob("iterator_*")}
        if counts and jax.process_count() not in counts:
            raise InputError(
                f"{directory} holds the data positions of {min(counts)} process(es), but this run has "
                f"{jax.process_count()}, and in a stream each has its own: start {min(counts)}, "
                "or train from a store, which any number may read (`pretrain cache`)."
            )
        args.batches.restore(path)
        return args.batches

    @staticmethod
    def _path(directory: epath.Path, process: int, processes: int) -> Path:
        return Path(directory) / f"iterator_{process:05d}_of_{processes:05d}"


@ocp.args.register_with_handler(_DataHandler, for_save=True)
@dataclasses.dataclass
class _DataSave(ocp.args.CheckpointArgs):
    batches: Batches


@ocp.args.register_with_handler(_DataHandler, for_restore=True)
@dataclasses.dataclass
class _DataRestore(ocp.args.CheckpointArgs):
    batches: Batches


class Checkpoints:
    """The checkpoints of one model directory.

    keep: the newest so many stay; period: and every multiple of so many steps, for ever (None: none).
    """

    def __init__(
        self, model_dir: Path, *, keep: int | None = None, period: int | None = None, read_only=False
    ):
        self.directory = model_dir.resolve() / DIRECTORY
        self._damaged = model_dir.resolve() / DAMAGED
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=period,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                # The data position is written by the loop's own thread, into a directory that must be there.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, batches: Batches, config_text: str) -> None:
        """Begins to save; returns when the arrays are copied and the data position is written.

        The arrays go to disk in the background. Raises NotSaved if this save, or the one before, failed.
        """
        sums = {name: int(value) for name, value in jax.device_get(_fingerprint(state)).items()}
        with self._saving(step):
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=_DataSave(batches),
                    config=ocp.args.JsonSave({"config": config_text, "fingerprint": sums}),
                ),
            )
        if not begun:
            raise RuntimeError(f"Orbax declined to save step {step} in {self.directory}.")

    def restore_newest(
        self, abstract_state: Any, batches: Batches, say: Callable[[str], None]
    ) -> tuple[int, Any]:
        """(step, state) of the newest checkpoint that is sound, with `batches` moved there.

        One that is damaged is said and moved aside, into `damaged/`, once another was found to go on from.

        Raises InputError if it holds other arrays or positions, or if none is sound.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, abstract_state, batches)
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

    def restore(self, step: int, abstract_state: Any, batches: Batches) -> Any:
        """The state of `step`, laid out like the shapes of `abstract_state`; moves `batches` there.

        Raises InputError if the checkpoint holds other arrays, Damaged if it is not as it was written.
        """
        with self._reading(step):
            self._check_arrays(step, abstract_state)
            items = {"state": ocp.args.StandardRestore(abstract_state), "data": _DataRestore(batches)}
            state = self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
            self._check_bits(step, state)
        return state

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """The parameters alone: what evaluation and generation need, without reading the optimizer state.

        Raises InputError if the checkpoint holds others, Damaged if it is not as it was written.
        """
        with self._reading(step):
            self._check_arrays(step, {"params": abstract_params})
            return self.restore_some(step, {"params": abstract_params})["params"]

    def restore_some(self, step: int, abstract: Any) -> Any:
        """These arrays of the checkpoint and no others. Raises Damaged."""
        with self._reading(step):
            partial = ocp.args.PyTreeRestore(
                abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            arrays = self._manager.restore(step, args=ocp.args.Composite(state=partial))["state"]
            self._check_bits(step, arrays)
        return arrays

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array in the checkpoint, by name. Raises Damaged."""
        with self._reading(step), ocp.StandardCheckpointer() as reader:
            metadata = reader.metadata(self.directory / str(step) / "state").item_metadata
            if metadata is None:
                raise ValueError("its list of arrays cannot be read")
            return _shapes(metadata.tree)

    def _check_arrays(self, step: int, wanted: Any) -> None:
        """Raises InputError unless the checkpoint has just the arrays that `wanted` has, entry by entry."""
        shapes = _shapes(wanted)
        entries = {name.split("/")[0] for name in shapes}
        stored = {name: shape for name, shape in self.shapes(step).items() if name.split("/")[0] in entries}
        wrong = [name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name)]
        if wrong:
            # A parameter if there is one: the optimizer's arrays only follow them.
            name = min(wrong, key=lambda name: (not name.startswith("params"), name))
            raise InputError(
                f"{name} has shape {stored.get(name, 'none')} in checkpoint {self.directory / str(step)} but "
                f"by this config {shapes.get(name, 'none')}: use the model and optimizer that wrote it, or a "
                "new model dir."
            )

    def _check_bits(self, step: int, arrays: Any) -> None:
        """Raises ValueError if an array is not the one that was saved."""
        written = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        expected: Mapping[str, int] = written["config"]["fingerprint"]
        for name, value in jax.device_get(_fingerprint(arrays)).items():
            if expected[name] != int(value):
                raise ValueError(f"{name} is not what was saved")

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns whatever a broken file makes Orbax, TensorStore or TensorFlow raise into Damaged.

        They have no error in common for it. What the devices raise, such as a lack of memory, is no damage.
        """
        failure: Exception | None = None
        try:
            yield
        except (InputError, Damaged, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            failure = error
        if processes.on_any(failure is not None):
            reason = _first_line(failure) if failure else "another process cannot read it"
            raise Damaged(f"Checkpoint {self.directory / str(step)} is damaged ({reason}).") from failure

    @contextmanager
    def _saving(self, step: int | None = None) -> Iterator[None]:
        """Turns what goes wrong with the disk into NotSaved; Orbax tells it late, and in many ways."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            which = f"of step {step} or the one before it" if step else "that was being written"
            raise NotSaved(
                f"The checkpoint {which} could not be saved in {self.directory} ({_first_line(error)})."
            ) from error

    def wait(self) -> None:
        """Returns when everything that was saved is on disk; raises NotSaved if something was not."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def position(model_dir: Path, step: int) -> int:
    """The position of the batch that the run would read after `step`."""
    path = _any_position(model_dir / DIRECTORY / str(step) / "data")
    return json.loads(path.with_suffix(".json").read_text())["position"]


def _any_position(directory: Path) -> Path:
    """The data position of some process: all are at the same batch."""
    return min(directory.glob("iterator_*.json")).with_suffix("")


def free_name(path: Path) -> Path:
    """`path`, or with .1, .2, ... behind it where there is one already."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 10_000)))
    return next(name for name in names if not name.exists())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in named_leaves(tree).items()}
