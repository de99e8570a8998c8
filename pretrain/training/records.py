"""The files of a model dir that people and tools read: metrics.jsonl, ledger.jsonl, tensorboard/."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import tensorflow as tf

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"
FINISHED = "finished"  # the event that a run ends with


def read(path: Path) -> list[dict]:
    """The objects of a .jsonl file that a run wrote, without a last line cut short."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < math.inf]


class NotWritten(RuntimeError):
    """The disk is full, or fails."""


class Lines:
    """An append-only .jsonl file of objects that have a `step`."""

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, which a resumed run will write again; a line cut short goes too."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
        temporary = self.path.with_suffix(".tmp")
        with self._writing(step):
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.replace(self.path)

    def write(self, step: int, **fields: Any) -> None:
        with self._writing(step):
            if self._file is None:
                self._file = self.path.open("a")
            self._file.write(json.dumps({"step": step, **fields}) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NotWritten(
                f"{self.path} could not be written after step {step} ({error.strerror})."
            ) from error

    def close(self) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # a line that could not be written was said then
                self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


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
            self._board = tf.summary.create_file_writer(str(model_dir / "tensorboard"))

    def metrics(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """One line of kind "train" or "eval", and the same figures to TensorBoard as kind/name."""
        if not self._writes:
            return
        self._metrics.write(step, kind=kind, **figures)
        with self._board.as_default(step=step):
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

    def close(self) -> None:
        if self._writes:
            self._metrics.close()
            self._ledger.close()
            self._board.close()
