"""Batches that a run leaves out, such as those that made its loss jump: kept in `skips.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from pretrain.checkpointing import DIRECTORY, free_name
from pretrain.data.manifest import read_json, write_json
from pretrain.errors import InputError
from pretrain.training import records

FILE = "skips.json"
ABANDONED = "abandoned"


def read(model_dir: Path) -> list[range]:
    """The positions of the batches that the run leaves out."""
    return [range(*skip["batches"]) for skip in _skips(model_dir)]


def _skips(model_dir: Path) -> list[dict]:
    path = model_dir / FILE
    try:
        return read_json(path)["skips"] if path.exists() else []
    except InputError as error:
        raise InputError(
            f"{path} is damaged, which says what batches the run leaves out: bring back a copy, or delete it "
            "to leave out none from here on."
        ) from error


def leave_out(model_dir: Path, batches: range, **why: object) -> None:
    """Adds to the batches that the run leaves out from now on; one process does it for all."""
    if jax.process_index() == 0 and len(batches):
        skip = {"batches": [batches.start, batches.stop], **why}
        with records.writing(model_dir / FILE):
            write_json(model_dir / FILE, {"skips": [*_skips(model_dir), skip]})


def rollbacks(model_dir: Path) -> int:
    """How often the run went back by itself."""
    return sum("rolled_back_to" in skip for skip in _skips(model_dir))


def unsaid(model_dir: Path, events: Sequence[Mapping]) -> list[dict]:
    """What is left out and no event "left out" says yet."""
    said = [event["batches"] for event in events if event["event"] == "left out"]
    return [skip for skip in _skips(model_dir) if skip["batches"] not in said]


@dataclasses.dataclass(frozen=True)
class Asked:
    """To go back to before some steps. before: the checkpoint to go back to. later: those after it.

    batches: the positions of what the steps were fed.
    """

    steps: range
    batches: range
    before: int
    later: Sequence[int]


def asked(model_dir: Path, steps: range, ledger: Sequence[Mapping[str, int]]) -> Asked | None:
    """What it takes to leave out what the ledger says these steps were fed; None if that was done before.

    Raises InputError if the run never made these steps, or has no checkpoint before them.
    """
    flag = f"--skip-steps {steps.start}:{steps.stop}"
    if any(skip.get("steps") == [steps.start, steps.stop] for skip in _skips(model_dir)):
        return None
    fed = {line["step"]: line["batch"] for line in ledger}
    missing = next((step for step in steps if step not in fed), None)
    if missing is not None:
        raise InputError(
            f"{flag} names step {missing}, but the ledger of {model_dir} has {min(fed, default=0)} to "
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
    return Asked(steps, range(fed[steps[0]], fed[steps[-1]] + 1), before, later)


def go_back(model_dir: Path, asked: Asked) -> str:
    """Moves the later checkpoints into `abandoned/`, adds to what the run leaves out, and says so."""
    if jax.process_index() == 0:
        for step in asked.later:
            with records.writing(model_dir / ABANDONED):
                (model_dir / ABANDONED).mkdir(exist_ok=True)
                path = model_dir / DIRECTORY / str(step)
                path.rename(free_name(model_dir / ABANDONED / path.name))
    first, last = asked.steps[0], asked.steps[-1]
    leave_out(model_dir, asked.batches, steps=[asked.steps.start, asked.steps.stop])
    names = ", ".join(map(str, asked.later))
    moved = f"; the checkpoints of steps {names} are in {ABANDONED}/" if names else ""
    return f"Going back to step {asked.before}, leaving out what steps {first} to {last} were fed{moved}."
