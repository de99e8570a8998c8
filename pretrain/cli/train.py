"""pretrain train"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pretrain.cli import options


@click.command("train", context_settings=options.GIN_CONTEXT)
@click.argument("run_file", metavar="RUN.gin")
@click.option("--model-dir", required=True, type=click.Path(path_type=Path), help="Where the run lives.")
@click.option(
    "--allow-config-change", is_flag=True, help="Go on with other settings than the model dir holds."
)
@options.gin_arguments
def command(run_file: str, model_dir: Path, allow_config_change: bool, gin_flags: tuple[str, ...]) -> None:
    """Train RUN.gin in a model dir; the same command again goes on where it stopped, bit for bit.

    \b
    Example:
      pretrain train runs/quickstart.gin --model-dir /tmp/quickstart --gin.STEPS=200
    """
    from rich.console import Console

    options.quiet_logs()
    from pretrain import config
    from pretrain.cli.console import ConsoleObserver
    from pretrain.training import loop, model_dirs

    run, text = config.load_with_text(run_file, options.bindings(gin_flags))
    model_dirs.refuse_other_things(model_dir)
    if allow_config_change:
        model_dirs.refuse_other_data(model_dir, text, config.data_difference)
    else:
        model_dirs.refuse_another_run(model_dir, text, config.difference)
    console = Console(markup=False)
    done = model_dirs.latest_step(model_dir)
    if done >= run.steps:
        console.print(
            f"{model_dir} is complete: step {done:,} of {run.steps:,}. Nothing to do.", soft_wrap=True
        )
        return
    observer = ConsoleObserver(console)
    try:
        with interrupts() as received:
            last = loop.train(run, text, model_dir, observer, lambda: bool(received))
    except loop.Diverged as error:
        observer.stop()
        click.echo(f"pretrain: {error} {_what_is_left(model_dirs.latest_step(model_dir))}", err=True)
        sys.exit(1)
    finally:
        observer.stop()
    if last < run.steps:
        console.print(f"Stopped and saved at step {last:,}; run the same command to go on.")
    else:
        console.print(f"Done: step {last:,}. Next: pretrain evaluate {model_dir}", soft_wrap=True)


def _what_is_left(step: int) -> str:
    kept = f"The last good checkpoint, of step {step}, is kept" if step else "There was no checkpoint yet"
    return f"{kept}; lower the learning rate or clip_norm, or look at the data of that step."


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Fills up with the Ctrl-C that asked the run to stop; a second one ends it at once."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"\npretrain: saving after this step, then stopping; Ctrl-C again ends at once.\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
