"""Two runs that should be one: every batch, figure and array of their model dirs, bit for bit."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pretrain.checkpointing import DIRECTORY
from pretrain.training.records import LEDGER, METRICS, read
from pretrain.trees import named_leaves

OF_THE_CLOCK = ("_per_second", "_seconds", "_utilisation")  # endings of figures that no two runs share


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How many of something are equal in two runs, and the first that is not, by name."""

    what: str
    equal: int
    different: int
    first: str = ""


def compare(one: Path, other: Path, step: int) -> list[Comparison]:
    """Compares the ledgers, the figures and the checkpoints of `step` in two model dirs.

    Numbers in the files are compared by their text, which has all their bits; arrays by their bytes. Events,
    and figures that depend on the clock, are left out. What only one of them has is a difference.
    """
    both = (one, other)
    ledgers = [_named(read(model_dir / LEDGER)) for model_dir in both]
    stored = [arrays(model_dir, step) for model_dir in both]
    found = [_compared("batches", ledgers, _difference_of_lines)]
    for what, kind in (("training figures", "train"), ("held-out figures", "eval")):
        found.append(_compared(what, [_figures(model_dir, kind) for model_dir in both], _difference_of_lines))
    for what, entry in (("parameters", "params"), ("optimizer state", "opt_state"), ("step and key", "")):
        parts = [{name: x for name, x in each.items() if _entry(name) == entry} for each in stored]
        if any(parts) or entry != "opt_state":  # which some optimizers do not have
            found.append(_compared(what, parts, _difference_of_arrays))
    return found


def _entry(name: str) -> str:
    """Which of the large entries of the state an array is of; "" of those that hold one or two numbers."""
    entry = name.split("/")[0]
    return entry if entry in ("params", "opt_state") else ""


def _figures(model_dir: Path, kind: str) -> dict[str, dict]:
    return _named(
        {name: value for name, value in line.items() if not name.endswith(OF_THE_CLOCK)}
        for line in read(model_dir / METRICS)
        if line["kind"] == kind
    )


def _named(lines: Iterable[dict]) -> dict[str, dict]:
    """The lines by what they are called: "step 7", and "step 7 again" for what should not be there."""
    names: dict[str, dict] = {}
    for line in lines:
        name = f"step {line['step']}"
        while name in names:
            name += " again"
        names[name] = line
    return names


def arrays(model_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, as it is on disk; none if there is no such checkpoint."""
    path = model_dir.resolve() / DIRECTORY / str(step) / "state"
    if not path.exists():
        return {}
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return named_leaves(reader.restore(path, restore_args=plain))


def _compared(what: str, both: list[dict[str, Any]], difference: Callable[[Any, Any], str]) -> Comparison:
    one, other = both
    differences = [] if one or other else ["neither run has any"]
    for name in one | other:
        if name not in other:
            differences.append(f"{name} is in the first run only")
        elif name not in one:
            differences.append(f"{name} is in the second run only")
        elif how := difference(one[name], other[name]):
            differences.append(f"{name}: {how}")
    equal = max(len(one | other) - len(differences), 0)
    return Comparison(what, equal, len(differences), differences[0] if differences else "")


def _difference_of_lines(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first field that differs; "" if none does."""
    for name in {**one, **other}:
        values = [json.dumps(line.get(name)) for line in (one, other)]
        if values[0] != values[1]:
            return f"{name} is {values[0]}, then {values[1]}"
    return ""


def _difference_of_arrays(one: np.ndarray, other: np.ndarray) -> str:
    """The first element whose bits differ; "" if none does.

    >>> _difference_of_arrays(np.array([0.0, 1.0]), np.array([-0.0, 1.0]))
    '1 of 2 elements, the first at [0]: 0.0, then -0.0'
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype}{list(one.shape)}, then {other.dtype}{list(other.shape)}"
    rows = [np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(-1, x.itemsize) for x in (one, other)]
    wrong = np.flatnonzero((rows[0] != rows[1]).any(1))
    if not wrong.size:
        return ""
    at = tuple(int(index) for index in np.unravel_index(wrong[0], one.shape))
    return f"{wrong.size} of {one.size} elements, the first at {list(at)}: {one[at]}, then {other[at]}"
