"""What being safe costs: seeking, saving, the ledger's hash, caching."""

import itertools
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import seqio

from pretrain import caching as caches
from pretrain import config, indexed
from pretrain.benchmarks import data
from pretrain.benchmarks.steps import BareSteps
from pretrain.checkpointing import DIRECTORY
from pretrain.training import loop, records, step
from tasks import python_stdlib

Rows = list[tuple[str, ...]]
ROUNDS = 6


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def stored(place: Path) -> Path:
    program = (sys.executable, "-m", "pretrain.cli.main", "cache", "python_stdlib", "--out")
    subprocess.run([*program, place / "store"], check=True, capture_output=True)
    return place / "store"


def seek(place: Path) -> Rows:
    """The first batch at a position, everything that opens the store included."""
    run = config.load("runs/quickstart.gin", [f"stores = ['{stored(place)}']"])
    next(indexed.IndexedBatches(run))  # imports, and whatever else is done once a process
    rows: Rows = [("step", "until its batch is there (median of 5)")]
    for position in (0, 1_000, 1_000_000, 1_000_000_000):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            batches = indexed.IndexedBatches(run)
            batches.seek(position)
            next(batches)
            seconds.append(time.perf_counter() - began)
        rows.append((f"{position:,}", ms(statistics.median(seconds))))
    return rows


class _Saves:
    """An observer that times saves: what they cost the loop, and when the files were there."""

    def __init__(self, model_dir: Path):
        self._model_dir = model_dir
        self.turns: list[float] = []  # when each began
        self.saved_in: list[int] = []
        self.wholes: list[float] = []
        self.began = 0.0
        self.stalls: list[float] = []
        self._waiting: list[threading.Thread] = []

    def doing(self, what: str) -> None:
        """As the watchdog is told."""
        if what.startswith("step "):
            self.turns.append(time.perf_counter())
        if what.startswith("the checkpoint of step"):
            self.began = time.perf_counter()

    def saved(self, at: int) -> None:
        self.stalls.append(time.perf_counter() - self.began)
        self.saved_in.append(len(self.turns) - 1)
        thread = threading.Thread(target=self._wait_for, args=(at, self.began))
        thread.start()
        self._waiting.append(thread)

    def costs(self, a_step: float) -> list[float]:
        """How much longer each turn with a save and the next one took than two steps.

        Two, because the loop is a step ahead of the device, and catches up before a save.
        """
        turns = [turn for turn in self.saved_in if turn + 2 < len(self.turns)]
        return [self.turns[turn + 2] - self.turns[turn] - 2 * a_step for turn in turns]

    def _wait_for(self, at: int, began: float) -> None:
        while not (self._model_dir / DIRECTORY / str(at)).exists():
            time.sleep(0.005)
        self.wholes.append(time.perf_counter() - began)

    def join(self) -> None:
        for thread in self._waiting:
            thread.join()

    def started(self, facts: loop.Facts) -> None:
        self.facts = facts

    def progressed(self, *_: object) -> None: ...
    def evaluated(self, *_: object) -> None: ...
    def said(self, *_: object) -> None: ...
    def happened(self, *_: object) -> None: ...
    def warm_started(self, *_: object) -> None: ...


def save(place: Path) -> Rows:
    """How long the loop waits while a model is saved whose save takes many steps."""
    settings = {
        "STEPS": 360, "BATCH_SIZE": 1, "lengths": {"targets": 16}, "shuffle_buffer": 100, "log_period": 59,
        "eval_period": 10**6, "eval_batches": 1, "checkpoint_period": 60, "keep_checkpoints": 1,
        "optimizer": "@optim.AdamW()", "optim.AdamW.schedule": "@optim.Constant()",
        "optim.Constant.peak": 1e-4, "decoder.DecoderConfig.embed_dim": 2048,
    }  # fmt: skip
    run = config.load(
        "runs/quickstart_causal_lm.gin", [f"{name} = {value}" for name, value in settings.items()]
    )
    model_dir = place / "model"
    observer = _Saves(model_dir)
    loop.train(run, "", model_dir, observer, lambda at: False, watchdog=observer)
    observer.join()
    turns = observer.turns
    a_step = statistics.median(after - before for before, after in itertools.pairwise(turns))
    stall, whole = statistics.median(observer.stalls[:-1]), statistics.median(observer.wholes[:-1])
    cost = statistics.median(observer.costs(a_step))
    size = sum(path.stat().st_size for path in (model_dir / DIRECTORY).rglob("*") if path.is_file())
    return [
        ("what", "time", "steps"),
        ("a step", ms(a_step), "1"),
        (f"a save of {size / 2**20:,.0f} MiB, until its files are there", ms(whole), f"{whole / a_step:.1f}"),
        ("of that, the loop stands still", ms(stall), f"{stall / a_step:.1f}"),
        ("what two steps take longer", ms(cost), f"{cost / a_step:.1f}"),
    ]


def ledger(place: Path) -> Rows:
    """The jitted step with and without the batch hash, in turns, and a line of the file."""
    run = config.load("runs/quickstart.gin")
    mesh = run.mesh.build()
    _, batch = data.measure(run, 1, 1)
    hashed = BareSteps(run, mesh, batch)
    with mock.patch.object(step, "batch_hash", lambda batch: jnp.zeros(2, jnp.uint32)):
        plain = BareSteps(run, mesh, batch)
    kinds = {"with": hashed, "without": plain}
    rounds: dict[str, list[float]] = {name: [] for name in kinds}
    cpu: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(2 * ROUNDS):
        for name, steps in kinds.items():
            measured = steps.round(5)
            if turn:
                rounds[name].append(statistics.median(measured.seconds))
                cpu[name].append(measured.cpu_seconds)
    lines = records.Lines(place / "ledger.jsonl")
    began = time.perf_counter()
    for at in range(10_000):
        lines.write(at, batch=at, batch_hash="0123456789abcdef")
    line = (time.perf_counter() - began) / 10_000
    lines.close()
    clock, work = ({name: statistics.median(each) for name, each in kind.items()} for kind in (rounds, cpu))
    return [
        ("what", "time", "share of the step"),
        ("a step with the hash of its batch", ms(clock["with"]), ""),
        ("a step without", ms(clock["without"]), f"{clock['with'] / clock['without'] - 1:+.2%}"),
        ("CPU time with", ms(work["with"]), ""),
        ("CPU time without", ms(work["without"]), f"{work['with'] / work['without'] - 1:+.2%}"),
        ("a line of the ledger", ms(line), f"{line / clock['without']:.2%}"),
    ]  # fmt: skip


def caching(place: Path) -> Rows:
    """CPU seconds of `pretrain cache` in one process, and of reading the task through SeqIO, in turns."""
    task = python_stdlib.task()
    splits = list(task.splits)
    ours, theirs = [], []
    tokens = 0
    for turn in range(3):
        began = time.process_time()
        manifest, _ = caches.cache(task, place / f"store{turn}", splits=splits, identity=lambda split: split)
        ours.append(time.process_time() - began)
        tokens = sum(split.total("tokens") for split in manifest.splits.values())
        began = time.process_time()
        read = sum(len(example["targets"]) for split in splits for example in _plain(task, split))
        theirs.append(time.process_time() - began)
        assert read == tokens, (read, tokens)
    speeds = {
        "`pretrain cache`: tokenized, checksummed, compressed, written": tokens / min(ours),
        "plain SeqIO: tokenized and dropped": tokens / min(theirs),
    }
    return [
        ("what", "tokens a CPU second"),
        *((name, f"{speed / 1e6:.2f} M") for name, speed in speeds.items()),
        ("ratio", f"{min(theirs) / min(ours):.2f}"),
    ]


def _plain(task: seqio.Task, split: str) -> Iterator[dict]:
    dataset = task.get_dataset(None, split, shuffle=False, use_cached=False, num_epochs=1)
    yield from dataset.as_numpy_iterator()
