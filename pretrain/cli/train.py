"""pretrain train"""

import signal
import sys
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
    if not allow_config_change:
        model_dirs.refuse_another_run(model_dir, text, config.difference)
    console = Console()
    if model_dirs.latest_step(model_dir) >= run.steps:
        console.print(f"{model_dir} is complete: step {run.steps:,} of {run.steps:,}. Nothing to do.")
        return
    observer = ConsoleObserver(console)
    stopping = _stop_on_signals()
    try:
        last = loop.train(run, text, model_dir, observer, lambda: bool(stopping))
    except loop.Diverged as error:
        observer.stop()
        console.print(f"{error} The last good checkpoint is untouched.", style="red")
        sys.exit(1)
    finally:
        observer.stop()
    if last < run.steps:
        console.print(f"Stopped and saved at step {last:,}; run the same command to go on.")
    else:
        console.print(f"Done: step {last:,}. Next: pretrain evaluate {model_dir}")


def _stop_on_signals() -> list[int]:
    """Fills up with the signals that asked the run to stop; the second Ctrl-C ends it at once."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, handle)
    return received
