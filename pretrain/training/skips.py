"""Batches that a run leaves out, such as those that made its loss jump: kept in `skips.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from pretrain.checkpointing import DIRECTORY, free_name
from pretrain.errors import InputError

FILE = "skips.json"
ABANDONED = "abandoned"


def read(model_dir: Path) -> list[range]:
    """The positions of the batches that the run leaves out."""
    return [range(*skip["batches"]) for skip in _skips(model_dir)]


def _skips(model_dir: Path) -> list[dict]:
    path = model_dir / FILE
    return json.loads(path.read_text()) if path.exists() else []


def leave_out(model_dir: Path, batches: range, **why: object) -> None:
    """Adds to the batches that the run leaves out from now on; one process does it for all."""
    if jax.process_index() == 0 and len(batches):
        temporary = model_dir / f"{FILE}.tmp"
        skip = {"batches": [batches.start, batches.stop], **why}
        temporary.write_text(json.dumps([*_skips(model_dir), skip], indent=1))
        temporary.replace(model_dir / FILE)


def leave_out_steps(model_dir: Path, steps: range, ledger: Sequence[Mapping[str, int]]) -> None:
    """Leaves out the batches that the ledger says these steps were fed, and goes back to before them.

    Checkpoints of later steps are moved into `abandoned/`. Done once: asked again, nothing changes.

    Raises InputError if the run never made these steps.
    """
    asked = [steps.start, steps.stop]
    if any(skip.get("steps") == asked for skip in _skips(model_dir)):
        return
    fed = {line["step"]: line["batch"] for line in ledger}
    if missing := [step for step in steps if step not in fed]:
        raise InputError(
            f"--skip-steps {steps.start}:{steps.stop} names step {missing[0]}, but the ledger of {model_dir} "
            f"has {min(fed, default=0)} to {max(fed, default=0)}."
        )
    if jax.process_index() == 0:
        for path in list((model_dir / DIRECTORY).glob("*")):
            if path.name.isdigit() and int(path.name) >= steps.start:
                (model_dir / ABANDONED).mkdir(exist_ok=True)
                path.rename(free_name(model_dir / ABANDONED / path.name))
    leave_out(model_dir, range(fed[steps[0]], fed[steps[-1]] + 1), steps=asked)
