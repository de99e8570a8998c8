"""Checkpoints: state, data position and config of a step, saved together by Orbax or not at all.

`checkpoints/STEP/` holds `state` (sharded arrays), `data` (one file set a process) and `config` (JSON).
Orbax writes into a temporary directory and renames it: a directory with a number for a name is whole.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pretrain.errors import InputError
from pretrain.pipeline import Batches

DIRECTORY = "checkpoints"


class _DataHandler(ocp.CheckpointHandler):
    """Lets every process write and read the position of its own data iterator.

    Not asynchronous: the iterator moves on with the next step, so its position is taken while the loop waits.
    """

    def save(self, directory: epath.Path, args: "_DataSave") -> None:
        args.batches.save(self._path(directory, jax.process_index(), jax.process_count()))

    def restore(self, directory: epath.Path, args: "_DataRestore") -> Batches:
        path = self._path(directory, jax.process_index(), jax.process_count())
        if not path.with_suffix(".index").exists():
            raise InputError(
                f"{directory} holds no data position for process {jax.process_index()} of "
                f"{jax.process_count()}: it was written by another number of processes. Start as many."
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
        directory = model_dir.resolve() / DIRECTORY
        self.directory = directory
        self._manager = ocp.CheckpointManager(
            directory,
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

    def latest(self) -> int | None:
        """The newest step with a whole checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, batches: Batches, config_text: str) -> None:
        """Begins to save; returns when the arrays are copied and the data position is written.

        The arrays go to disk in the background.
        """
        begun = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=_DataSave(batches),
                config=ocp.args.JsonSave({"config": config_text}),
            ),
        )
        if not begun:
            raise RuntimeError(f"Orbax declined to save step {step} in {self.directory}.")

    def restore(self, step: int, abstract_state: Any, batches: Batches | None = None) -> Any:
        """The state of `step`, laid out like the shapes of `abstract_state`; moves `batches` there.

        Raises InputError if the checkpoint holds other arrays.
        """
        self._check_arrays(step, abstract_state)
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract_state)}
        if batches is not None:
            items["data"] = _DataRestore(batches)
        return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """The parameters alone: what evaluation and generation need, without reading the optimizer state.

        Raises InputError if the checkpoint holds others.
        """
        self._check_arrays(step, {"params": abstract_params})
        partial = ocp.args.PyTreeRestore(
            {"params": abstract_params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract_params}),
            partial_restore=True,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=partial))["state"]["params"]

    def _check_arrays(self, step: int, wanted: Any) -> None:
        """Raises InputError unless the checkpoint has just the arrays that `wanted` has, entry by entry."""
        path = self.directory / str(step)
        with ocp.StandardCheckpointer() as reader:
            stored = _shapes(reader.metadata(path / "state").item_metadata.tree)
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

    def wait(self) -> None:
        """Returns when everything that was saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its name, such as `params/decoder/final_norm/scale`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
