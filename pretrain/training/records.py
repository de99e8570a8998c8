"""The files of a model dir that people and tools read: metrics.jsonl, ledger.jsonl, tensorboard/."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import tensorflow as tf

from pretrain.data.manifest import replacing
from pretrain.errors import InputError

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"
BOARD = "tensorboard"
FINISHED = "finished"  # the event that a run ends with


def read(path: Path) -> list[dict]:
    """The objects of a .jsonl file that a run wrote, without a last line cut short. Raises InputError."""
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict]]:
    """The whole lines of the file, as text and as what they say."""
    found: list[tuple[str, dict]] = []
    texts = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            found.append((text, {"step": line["step"], **line}))
        except (ValueError, KeyError, TypeError) as error:
            if number < len(texts):
                raise InputError(
                    f"{path}, line {number} is not what a run writes: mend or delete that line."
                ) from error
    return found


class NotWritten(RuntimeError):
    """The disk is full, or fails."""


@contextlib.contextmanager
def writing(path: Path, when: str = "") -> Iterator[None]:
    """Turns what goes wrong with the disk into NotWritten."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        why = getattr(error, "strerror", None) or getattr(error, "message", "")
        raise NotWritten(f"{path} could not be written{when} ({why}).") from error


class Lines:
    """An append-only .jsonl file of objects that have a `step`."""

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, which a resumed run will write again; a line cut short goes too."""
        if not self.path.exists():
            return
        kept = [text for text, line in _lines(self.path) if line["step"] <= step]
        with writing(self.path, f" after step {step}"), replacing(self.path) as temporary:
            temporary.write_text("".join(f"{text}\n" for text in kept))

    def write(self, step: int, **fields: Any) -> None:
        with writing(self.path, f" after step {step}"):
            if self._file is None:
                self._file = self.path.open("a")
            self._file.write(json.dumps({"step": step, **fields}) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """What was written survives a loss of power."""
        if self._file:
            with writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # a line that could not be written was said then
                self._file.close()


class History:
    """What the records of a run say of it so far."""

    def __init__(self, model_dir: Path):
        self._metrics, self._ledger = (read(model_dir / name) for name in (METRICS, LEDGER))

    @property
    def events(self) -> list[dict]:
        return [line for line in self._metrics if line["kind"] == "event"]

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation of this step."""
        return any(line["step"] == step and line["kind"] == "eval" for line in self._metrics)

    def bad_in_a_row(self) -> int:
        """How many of the newest steps were bad, one after the other."""
        return len(list(itertools.takewhile(lambda line: line.get("bad"), reversed(self._ledger))))


def finished(model_dir: Path, steps: int) -> bool:
    """Whether the run came to the end of so many steps, its last evaluation included."""
    lines = read(model_dir / METRICS)
    return any(line.get("event") == FINISHED and line["step"] >= steps for line in lines)


class Records:
    """Writes a run's metrics, ledger and TensorBoard events; `writes` is False on all processes but one."""

    def __init__(self, model_dir: Path, *, resumed_from: int, writes: bool):
        self._writes = writes
        self._metrics = Lines(model_dir / METRICS)
        self._ledger = Lines(model_dir / LEDGER)
        if writes:
            self._metrics.rewind(resumed_from)
            self._ledger.rewind(resumed_from)
            with writing(model_dir / BOARD):
                self._board = tf.summary.create_file_writer(str(model_dir / BOARD))
            self._board_path = model_dir / BOARD

    def metrics(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """One line of kind "train" or "eval", and the same figures to TensorBoard as kind/name."""
        if not self._writes:
            return
        self._metrics.write(step, kind=kind, **figures)
        with writing(self._board_path, f" after step {step}"), self._board.as_default(step=step):
            for name, value in figures.items():
                tf.summary.scalar(f"{kind}/{name}", value)

    def event(self, step: int, event: str, **fields: Any) -> None:
        """Something that happened to the run: started, resumed, stopped, finished."""
        if self._writes:
            self._metrics.write(step, kind="event", event=event, **fields)

    def ledger(self, step: int, batch: int, batch_hash: str, bad: bool) -> None:
        """What was fed to `step`, by position and hash: lets two runs be compared batch for batch."""
        if self._writes:
            self._ledger.write(step, batch=batch, batch_hash=batch_hash, **({"bad": True} if bad else {}))

    def sync(self) -> None:
        """What was written survives a loss of power; a checkpoint is not to be ahead of its records."""
        self._metrics.sync()
        self._ledger.sync()
        if self._writes:
            with writing(self._board_path):
                self._board.flush()

    def close(self) -> None:
        if self._writes:
            self._metrics.close()
            self._ledger.close()
            with contextlib.suppress(tf.errors.OpError):  # a full disk was said where a line did not fit
                self._board.close()
