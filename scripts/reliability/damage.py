"""A model dir that is damaged, full, read-only or taken: what the same command says, and how it goes on."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import signals

from pretrain.checkpointing import DIRECTORY
from pretrain.comparison import compare
from pretrain.training import model_dirs, records

STEPS, NEWEST, KILLED = 20, 15, 17
RUN = signals.Mode("quickstart", packed=True)
LOADING = re.compile(r"[WIE]\d{4} |WARNING: All log messages")  # of libraries, while they are imported


def train(place: Path, model_dir: Path) -> subprocess.CompletedProcess:
    flags = [*RUN.flags(place), f"--gin.STEPS={STEPS}"]
    program = [sys.executable, "-m", "pretrain.cli.main", "train", RUN.run_file(place), *flags]
    return subprocess.run([*program, "--model-dir", model_dir], capture_output=True, text=True)


def table(place: Path) -> list[tuple[str, ...]]:
    """A row for each case."""
    signals.keep_compiled(place)
    straight, stopped = place / "straight", place / "stopped"
    train(place, straight).check_returncode()
    shutil.copytree(straight, stopped)
    leave_as_killed(stopped)
    rows = []
    for name, damaged in cases(stopped):
        click.echo(name, err=True)
        with damaged(place / re.sub(r"\W+", "-", name)) as model_dir:
            before = set(checkpoints(model_dir))
            done = train(place, model_dir)
            rows.append(
                (name, str(done.returncode), said(done, place), *outcome(straight, model_dir, before))
            )
    return [("what is wrong", "exit code", "what it says", "goes on from", "the end of the run"), *rows]


def leave_as_killed(model_dir: Path) -> None:
    """Takes away what a kill after step `KILLED` would not have let come about."""
    shutil.rmtree(model_dir / DIRECTORY / str(STEPS))
    for name in (records.METRICS, records.LEDGER):
        lines = [line for line in records.read(model_dir / name) if line["step"] <= KILLED]
        (model_dir / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def checkpoints(model_dir: Path) -> list[str]:
    """All that are there, those set aside too."""
    return [
        path.name
        for place in (DIRECTORY, "damaged")
        for path in (model_dir / place).glob("*")
        if path.name.isdigit()
    ]


def said(done: subprocess.CompletedProcess, place: Path) -> str:
    """All that stderr says, and what stdout says of damage; without the directories above the model dir."""
    lines = [line for line in done.stdout.splitlines() if "amaged" in line]
    lines += [line for line in done.stderr.splitlines() if not LOADING.match(line)]
    text = re.sub(rf"{re.escape(str(place))}/[\w.-]+/?", "", " ".join(lines))
    text = re.sub(r"process \d+ on [^:]+", "process N on HOST", text)
    return text.removeprefix("pretrain: ").strip().replace("|", "\\|")


def outcome(straight: Path, model_dir: Path, before: set[str]) -> tuple[str, str]:
    events = [line for line in records.read(model_dir / records.METRICS) if line.get("event") == "resumed"]
    lost = before - set(checkpoints(model_dir))
    if lost:
        return "", f"lost {', '.join(lost)}"
    if model_dirs.latest_step(model_dir) < STEPS:
        return "", "checkpoints as they were"
    different = [each.what for each in compare(straight, model_dir, STEPS) if each.different]
    return (
        f"step {events[-1]['step']}",
        f"{', '.join(different)} differ" if different else "equal, bit for bit",
    )


Case = Callable[[Path], contextlib.AbstractContextManager[Path]]


def cases(stopped: Path) -> Iterator[tuple[str, Case]]:
    """Each makes a model dir like `stopped` with something wrong."""

    def copied(change: Callable[[Path], None]) -> Case:
        @contextlib.contextmanager
        def case(model_dir: Path) -> Iterator[Path]:
            shutil.copytree(stopped, model_dir)
            change(model_dir)
            yield model_dir

        return case

    yield "nothing", copied(lambda model_dir: None)
    for part in ("state", "data", "config"):
        for how, change in CHANGES.items():
            yield f"{part} of the newest checkpoint {how}", copied(changed(part, change, [NEWEST]))
    yield "another number as the position in the data", copied(another_position)
    yield "a bit flipped in every checkpoint", copied(changed("state", flip_a_bit, [10, NEWEST]))
    yield "the newest checkpoint was not finished", copied(unfinished)
    yield "another run in the model dir", copied_and_taken(stopped)
    if os.geteuid() == 0:  # who may mount
        pages = [-(-path.stat().st_size // 4096) + 1 for path in stopped.rglob("*")]
        room = 4 * (sum(pages) + 40)  # for what is there, and hardly more
        yield "a disk that is full", on_a_disk(stopped, f"size={room}k")
        yield "a disk that is read-only", on_a_disk(stopped, "size=100m", then="remount,ro")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


CHANGES = {"cut short": cut_short, "with a bit flipped": flip_a_bit, "missing": Path.unlink}


def changed(part: str, change: Callable[[Path], None], steps: list[int]) -> Callable[[Path], None]:
    def change_all(model_dir: Path) -> None:
        for step in steps:
            files = (model_dir / DIRECTORY / str(step) / part).rglob("*")
            change(max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size))

    return change_all


def another_position(model_dir: Path) -> None:
    (path,) = (model_dir / DIRECTORY / str(NEWEST) / "data").glob("iterator_*.json")
    path.write_text(path.read_text().replace(f'"position": {NEWEST}', '"position": 11'))


def unfinished(model_dir: Path) -> None:
    path = model_dir / DIRECTORY / str(NEWEST)
    path.rename(path.with_name(f"{NEWEST}.orbax-checkpoint-tmp"))


def copied_and_taken(stopped: Path) -> Case:
    @contextlib.contextmanager
    def case(model_dir: Path) -> Iterator[Path]:
        shutil.copytree(stopped, model_dir)
        with model_dirs.held(model_dir):
            yield model_dir

    return case


def on_a_disk(stopped: Path, options: str, then: str = "") -> Case:
    @contextlib.contextmanager
    def case(model_dir: Path) -> Iterator[Path]:
        model_dir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", model_dir], check=True)
        try:
            shutil.copytree(stopped, model_dir, dirs_exist_ok=True)
            if then:
                subprocess.run(["mount", "-o", then, model_dir], check=True)
            yield model_dir
        finally:
            subprocess.run(["umount", model_dir], check=True)

    return case
