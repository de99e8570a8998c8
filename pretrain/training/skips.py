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


def rollbacks(model_dir: Path) -> int:
    """How often the run went back by itself."""
    return sum("rolled_back_to" in skip for skip in _skips(model_dir))


def unsaid(model_dir: Path, events: Sequence[Mapping]) -> list[dict]:
    """What is left out and no event "left out" says yet."""
    said = [event["batches"] for event in events if event["event"] == "left out"]
    return [skip for skip in _skips(model_dir) if skip["batches"] not in said]


def leave_out_steps(model_dir: Path, steps: range, ledger: Sequence[Mapping[str, int]]) -> str:
    """Leaves out the batches that the ledger says these steps were fed, and goes back to before them.

    Checkpoints of later steps are moved into `abandoned/`. Done once: asked again, nothing changes.

    Returns:
        What was done, for a person.

    Raises:
        InputError: the run never made these steps, or has no checkpoint before them.
    """
    asked, flag = [steps.start, steps.stop], f"--skip-steps {steps.start}:{steps.stop}"
    if any(skip.get("steps") == asked for skip in _skips(model_dir)):
        return f"{flag} was done before; name more steps to leave out what they are fed now."
    fed = {line["step"]: line["batch"] for line in ledger}
    if missing := [step for step in steps if step not in fed]:
        raise InputError(
            f"{flag} names step {missing[0]}, but the ledger of {model_dir} has {min(fed, default=0)} to "
            f"{max(fed, default=0)}."
        )
    saved = sorted(int(path.name) for path in (model_dir / DIRECTORY).glob("*") if path.name.isdigit())
    before = max((step for step in saved if step < steps.start), default=None)
    if before is None:
        raise InputError(
            f"{flag} needs a checkpoint before step {steps.start}, and the oldest in {model_dir} is of step "
            f"{min(saved, default=0)}: name later steps, or train anew in another --model-dir."
        )
    later = [step for step in saved if step >= steps.start]
    if jax.process_index() == 0:
        for step in later:
            (model_dir / ABANDONED).mkdir(exist_ok=True)
            path = model_dir / DIRECTORY / str(step)
            path.rename(free_name(model_dir / ABANDONED / path.name))
    leave_out(model_dir, range(fed[steps[0]], fed[steps[-1]] + 1), steps=asked)
    moved = f"; the checkpoints of steps {', '.join(map(str, later))} are in {ABANDONED}/" if later else ""
    return (
        f"Going back to step {before}, leaving out what steps {steps.start} to {steps[-1]} were fed{moved}."
    )
