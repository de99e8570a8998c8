"""Runs that are ended again and again, by SIGKILL or SIGTERM, over objectives and ways to read."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from pretrain import config, verification
from pretrain.cli import options
from pretrain.comparison import Comparison

DEFAULT = {"kills": 200, "terms": 50}
SIGNAL = {"kills": signal.SIGKILL, "terms": signal.SIGTERM}
EVERY = {"kills": 1, "terms": 3}  # of so many modes one is run
ROUNDS = 5  # runs of a mode at most, where one came to its end before it was ended often enough

SMALL = {
    "encoder_decoder": {
        "lengths": {"inputs": 64, "targets": 48},
        "encoder_decoder.EncoderDecoderConfig.encoder_layers": 1,
        "encoder_decoder.EncoderDecoderConfig.decoder_layers": 2,
    },
    "decoder": {"lengths": {"targets": 96}, "decoder.DecoderConfig.num_layers": 2},
}
OBJECTIVES = {
    "quickstart": ("span corruption", "encoder_decoder"),
    "quickstart_causal_lm": ("causal LM", "decoder"),
    "quickstart_prefix_lm": ("prefix LM", "decoder"),
    "quickstart_prefix_lm_encoder_decoder": ("prefix LM, encoder-decoder", "encoder_decoder"),
}
MIXTURE = """\
import seqio
from tasks import python_stdlib

seqio.TaskRegistry.add(
    "lines",
    source=seqio.TextLineDataSource({{"train": "{text}", "validation": "{text}"}}),
    preprocessors=[
        lambda lines: lines.map(lambda line: {{"targets": line}}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features={{"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)}},
)
seqio.MixtureRegistry.add("both", [("python_stdlib", 2.0), ("lines", 1.0)])
"""


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to train: a quickstart run made small, with dropout, and what it reads."""

    name: str
    reads: str = "a stream"
    packed: bool = False
    processes: int = 1

    def run_file(self, place: Path) -> str:
        return str(place / f"{self.name}.gin") if self.reads == "a mixture" else f"runs/{self.name}.gin"

    def flags(self, place: Path) -> list[str]:
        """The settings, as flags of `pretrain train`."""
        small = SMALL[OBJECTIVES[self.name][1]]
        model = list(small)[-1].rpartition(".")[0]
        settings: dict[str, object] = {
            "STEPS": 60 if self.processes > 1 else 240, "BATCH_SIZE": 4, "shuffle_buffer": 100,
            "eval_period": 10, "eval_batches": 2, "checkpoint_period": 5, "pack": self.packed,
            f"{model}.embed_dim": 32, f"{model}.mlp_dim": 64, f"{model}.head_dim": 8,
            f"{model}.dropout": 0.1, **small,
        }  # fmt: skip
        if self.reads == "a store":
            settings["stores"] = [str(place / "store")]
        return [f"--gin.{name}={value!r}" for name, value in settings.items()]


MODES = [  # what takes longest first
    Mode("quickstart", "a mixture", processes=2),
    Mode("quickstart_causal_lm", "a store", processes=2),
    Mode("quickstart", packed=True, processes=2),
    Mode("quickstart_prefix_lm", processes=2),
    Mode("quickstart", "a mixture"),
    Mode("quickstart_causal_lm", "a mixture", packed=True),
    *(Mode(name, "a store") for name in OBJECTIVES),
    *(Mode(name, packed=True) for name in OBJECTIVES),
    *(Mode(name) for name in OBJECTIVES),
]
MOMENTS = ("start", "step", "save", "evaluation")


class Quiet:
    """An observer that says nothing."""

    def began(self, what: str) -> None: ...
    def reached(self, step: int) -> None: ...
    def killed(self, kill: verification.Kill) -> None: ...


class Campaign:
    """All modes, a few at a time."""

    def __init__(self, place: Path, section: str, number: int, seed: int, processes: int | None):
        self._place, self._by, self._number, self._done = place, SIGNAL[section], number, 0
        self._seed = seed
        self._lock = threading.Lock()  # gin reads one file at a time
        modes = [mode for mode in MODES[:: EVERY[section]] if processes in (None, mode.processes)]
        weights = np.array([2 if mode.processes > 1 else 3 for mode in modes])  # one process is quicker
        ends = np.round(number * np.cumsum(weights) / weights.sum()).astype(int)
        shares = np.diff(ends, prepend=0).tolist()
        self._todo = [(mode, share) for mode, share in zip(modes, shares, strict=True) if share]

    def reports(self, jobs: int) -> list[tuple[Mode, verification.Report]]:
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(self._report, *zip(*self._todo, strict=True)))

    def _report(self, mode: Mode, kills: int) -> tuple[Mode, verification.Report]:
        total = verification.Report((), [])
        for turn in range(ROUNDS):
            if missing := kills - len(total.kills):
                one = self._run(mode, missing, turn)
                total = verification.Report(
                    (*total.kills, *one.kills), [*total.comparisons, *one.comparisons]
                )
        return mode, total

    def _run(self, mode: Mode, kills: int, turn: int) -> verification.Report:
        run_file, flags = mode.run_file(self._place), mode.flags(self._place)
        with self._lock:
            run = config.load(run_file, options.bindings(tuple(flags)))
        index = MODES.index(mode)
        directory = self._place / f"{index}-{mode.name}-{turn}"
        try:
            report = verification.verify(
                run, [run_file, *flags], directory, Quiet(),
                kills=kills, by=self._by, processes=mode.processes,
                seed=index + len(MODES) * (turn + ROUNDS * self._seed),
            )  # fmt: skip
        except verification.RunFailed as error:
            click.echo(f"{mode}: {error}", err=True)
            report = verification.Report((), [Comparison("runs", 0, 1, str(error))])
        with self._lock:
            self._done += len(report.kills)
            equal = "equal" if report.equal else f"DIFFERENT, see {directory}"
            click.echo(f"{self._done} of {self._number}: {mode}: {equal}", err=True)
        return report


def table(
    place: Path, section: str, number: int, jobs: int, seed: int, processes: int | None
) -> list[tuple[str, ...]]:
    """A row for each mode: how often it was ended in which moment, and what is equal after it."""
    prepare(place)
    rows = [_row(*each) for each in Campaign(place, section, number, seed, processes).reports(jobs)]
    head = ("objective", "reads", "processes", "signals", *MOMENTS, "longest", "equal", "different")
    whole = [sum(row[at] for row in rows) for at in (3, 4, 5, 6, 7)]
    longest = max(row[8] for row in rows)
    total = ("all", "", "", *whole, longest, sum(row[9] for row in rows), sum(row[10] for row in rows))
    return [head, *(tuple(_text(cell) for cell in row) for row in (*rows, total))]


def _row(mode: Mode, report: verification.Report) -> tuple:
    hits = Counter(kill.hit for kill in report.kills)
    return (
        OBJECTIVES[mode.name][0],
        mode.reads + (", packed" if mode.packed else ""),
        mode.processes,
        len(report.kills),
        *(hits[moment] for moment in MOMENTS),
        max((kill.seconds for kill in report.kills), default=0.0),
        sum(each.equal for each in report.comparisons),
        sum(each.different for each in report.comparisons),
    )


def _text(cell: str | int | float) -> str:
    return f"{cell:.1f} s" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell


def keep_compiled(place: Path) -> None:
    """Launches are many and programs few; to compile one takes longer than its 60 small steps."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def prepare(place: Path) -> None:
    """Writes what the modes read, a store and a mixture."""
    keep_compiled(place)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(place))
    text = place / "lines.txt"
    text.write_text("".join(f"line {number}, squared {number**2}\n" for number in range(5000)))
    (place / "both_tasks.py").write_text(MIXTURE.format(text=text))
    for name in {mode.name for mode in MODES if mode.reads == "a mixture"}:
        shipped = (config.shipped() / "runs" / f"{name}.gin").read_text()
        mixed = shipped.replace("@python_stdlib.task()", "'both'")
        mixed = mixed.replace("from tasks import python_stdlib", "import both_tasks")
        (place / f"{name}.gin").write_text(mixed)
    program = (sys.executable, "-m", "pretrain.cli.main", "cache", "python_stdlib", "--out")
    subprocess.run([*program, place / "store"], check=True, capture_output=True)
