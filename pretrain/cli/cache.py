"""pretrain cache"""

import difflib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.cli import options
from pretrain.errors import InputError

if TYPE_CHECKING:
    import seqio
    from rich.console import Console
    from rich.table import Table

    from pretrain.caching import Job, Progress
    from pretrain.data.manifest import Manifest
    from pretrain.workers import Work

SECONDS_BETWEEN_LINES = 10


@click.command("cache", context_settings=options.GIN_CONTEXT)
@click.argument("task", metavar="TASK|RUN.gin", required=False)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Directory of the store, new or unfinished."
)
@click.option("--splits", help="Splits to cache, such as train,validation.  [default: all of the task]")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes.  [default: as many as there are cores]"
)
@click.option(
    "--runner", metavar="NAME", help="Have it done by a runner of Apache Beam, such as DirectRunner."
)
@click.option("--runner-option", "runner_options", multiple=True, metavar="NAME=VALUE",
              help="An option of the runner; can be given again.")  # fmt: skip
@click.option(
    "--block-tokens", type=click.IntRange(min=1), help="Tokens that are read at once.  [default: 4096]"
)
@click.option("--check", is_flag=True, help="Write nothing: read all of --out and say what is damaged.")
@options.gin_arguments
def command(
    task: str | None,
    out: Path,
    splits: str | None,
    workers: int | None,
    runner: str | None,
    runner_options: tuple[str, ...],
    block_tokens: int | None,
    check: bool,
    gin_flags: tuple[str, ...],
) -> None:
    """Tokenize a corpus once, into a store that any objective can read from any position.

    TASK is the name of a SeqIO task, or a run file, whose task it is then. The same command again goes on
    where it was interrupted.

    \b
    Example:
      pretrain cache python_stdlib --out /tmp/python_stdlib
      pretrain cache runs/text_files.gin --out /tmp/mine --gin.FILES="'/data/*.txt'"
      pretrain cache --out /tmp/mine --check
      pretrain cache python_stdlib --out /nfs/store --runner DirectRunner \\
          --runner-option direct_num_workers=4
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if check:
        _check(out, console)
        return
    if task is None:
        raise InputError("There is no TASK: name a SeqIO task, or a run file.")
    options.quiet_logs()
    from pretrain import caching, pipeline

    start = functools.partial(start_worker, task, gin_flags)
    elsewhere = _on_beam(runner, runner_options, workers, start)
    corpus = load_corpus(task, gin_flags)
    display = _Display(Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        manifest, progress = caching.cache(
            corpus,
            out,
            splits=splits.split(",") if splits else list(corpus.splits),
            identity=functools.partial(pipeline.identity_of_source, corpus.source),
            block_tokens=block_tokens or caching.BLOCK_TOKENS,
            num_workers=workers or os.cpu_count() or 1,
            start=start,
            elsewhere=elsewhere,
            report=display.show,
        )
    except KeyboardInterrupt:
        click.echo(
            "\npretrain: stopped; run the same command to go on with the shards that are left.", err=True
        )
        sys.exit(1)
    finally:
        display.stop()
    console.print(_table(manifest))
    if not progress.new_shards:
        console.print(f"{out} is complete. Nothing to do.")
    else:
        console.print(f"Done: {out}, {_speed(progress)}")


def load_corpus(task: str, gin_flags: tuple[str, ...]) -> "seqio.Task":
    """The task of this name, or of this run file. Raises InputError if there is none, or it is a mixture."""
    import seqio

    if task.endswith(".gin"):
        from pretrain import config

        corpus = config.load(task, options.bindings(gin_flags)).corpus()
    else:
        corpus = _registered(task)
        if gin_flags:
            raise InputError(f"{gin_flags[0]} is a setting of a run file, and {task} is none: leave it out.")
    if isinstance(corpus, seqio.Mixture):
        raise InputError(
            f"{corpus.name!r} is a mixture of {', '.join(each.name for each in corpus.tasks)}: cache each "
            "into its own --out; where a run file registers them, choose one with --gin.task=\"'NAME'\"."
        )
    return corpus


def _registered(name: str) -> "seqio.Task | seqio.Mixture":
    import seqio

    import tasks  # noqa: F401

    try:
        return seqio.get_mixture_or_task(name)
    except ValueError:
        known = sorted(seqio.TaskRegistry.names())
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            f"No task {name!r} is registered"
            + (f"; did you mean {close[0]}?" if close else f", only {', '.join(known)}")
            + (
                ": one with settings, or of your own, is cached by the run file that names it."
                if not close
                else ""
            )
        ) from None


def start_worker(task: str, gin_flags: tuple[str, ...]) -> "Work":
    """What a worker process begins with."""
    options.quiet_logs()
    from pretrain import caching

    return caching.maker(load_corpus(task, gin_flags))


def _on_beam(
    runner: str | None, runner_options: Sequence[str], workers: int | None, start: "Callable[[], Work]"
) -> "Callable[[Sequence[Job]], None] | None":
    """What has jobs done by a runner of Beam. Raises InputError if it is not installed, or refuses."""
    if runner is None:
        if runner_options:
            raise InputError(
                f"--runner-option {runner_options[0]} needs a --runner: add one, or leave it out."
            )
        return None
    if workers:
        raise InputError(
            "--workers and --runner exclude each other: tell the runner by its own option how many, as by "
            "--runner-option direct_num_workers=4."
        )
    logging.disable(logging.WARNING)  # while it is imported, Beam warns of what is for BigQuery alone
    try:
        from pretrain import beam_workers
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise InputError("--runner needs Apache Beam, which is not here: install pretrain[beam].") from error
    finally:
        logging.disable(logging.NOTSET)
    pipeline = beam_workers.pipeline(runner, runner_options)
    for part in ("common", "worker", "portability"):  # they print tracebacks, which the exception has too
        logging.getLogger(f"apache_beam.runners.{part}").setLevel(logging.CRITICAL)
    return functools.partial(beam_workers.run, pipeline, start)


def _check(out: Path, console: "Console") -> None:
    from rich.console import Console
    from rich.progress import Progress

    options.quiet_logs()
    from pretrain.data import store
    from pretrain.data.manifest import Manifest

    manifest = Manifest.of(out)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("reading", total=shards)
        problems = store.verify(out, seen=lambda name: progress.advance(bar))
    for problem in problems:
        console.print(problem, markup=False)
    console.print(_table(manifest))
    if problems:
        console.print(f"{out} has {len(problems)} damaged or missing places, listed above.")
        sys.exit(1)
    console.print(f"{out} is whole: every record is what was written.")


class _Display:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: "Console"):
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._console = console
        self._said = time.monotonic()
        self._first: int | None = None  # what was done before this command
        self._bar = Progress(
            TextColumn("shard {task.fields[shards]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("cache", total=None, shards="", speed="")
        self._bar.start()

    def show(self, progress: "Progress") -> None:
        done, total = progress.done
        self._first = done if self._first is None else self._first
        shards = f"{progress.shards:,}/{progress.num_shards:,}"
        self._bar.update(self._task, completed=done, total=total, shards=shards, speed=_speed(progress))
        if self._console.is_terminal or time.monotonic() - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = time.monotonic()
        new = done - self._first
        left = f"{progress.seconds * (total - done) / new:,.0f} s left" if new else ""
        self._console.print(f"shard {shards}  {done / total:.0%}  {_speed(progress)}  {left}", markup=False)

    def stop(self) -> None:
        self._bar.stop()


def _speed(progress: "Progress") -> str:
    from pretrain.cli.console import si

    if not progress.new_tokens:
        return "starting"
    tokens = progress.new_tokens
    speed = f"{si(tokens / progress.seconds)} tokens/s"
    if not progress.worker_seconds:
        return speed
    return f"{speed}, {si(tokens / progress.worker_seconds)} a worker"


def _table(manifest: "Manifest") -> "Table":
    """A row for each split."""
    from rich.table import Table

    from pretrain.cli.console import si

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", "documents", "tokens", "bytes of text", "bytes on disk", "shards"):
        table.add_column(name, justify="right" if name else "left")
    for name, split in manifest.splits.items():
        table.add_row(
            name,
            f"{split.total('documents'):,}",
            f"{split.total('tokens'):,}",
            f"{si(split.total('text_bytes'))}B",
            f"{si(split.total('block_bytes') + split.total('end_bytes'))}B",
            f"{split.num_shards:,}",
        )
    return table
