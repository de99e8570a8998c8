"""pretrain verify-resume"""

import shutil
import signal
import sys
from pathlib import Path

import click

from pretrain.cli import options
from pretrain.errors import InputError


@click.command("verify-resume", context_settings=options.GIN_CONTEXT)
@click.argument("run_file", metavar="RUN.gin")
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="Signals in all.")
@click.option(
    "--signal", "by", type=click.Choice(["KILL", "TERM"]), default="KILL", show_default=True,
    help="TERM asks the run to save and end.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True,
    help="Run as so many processes, on this machine's CPUs.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of when to kill.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path),
    help="Where both runs are made, and stay.  [default: a temporary directory, kept if they differ]",
)  # fmt: skip
@options.gin_arguments
def command(
    run_file: str, kills: int, by: str, processes: int, seed: int, work_dir: Path | None,
    gin_flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Train RUN.gin twice, the second time killed and resumed, and compare the two bit for bit.

    The second run is ended with SIGKILL in a step, in a save and in an evaluation, and started again each
    time. Exits with 0 if every batch, loss, parameter and optimizer value is the same, with 1 if not.

    \b
    Example:
      pretrain verify-resume runs/quickstart.gin --gin.STEPS=40 --gin.checkpoint_period=10
    """
    options.quiet_logs()
    import jax
    from rich.console import Console

    from pretrain import config, verification
    from pretrain.cli import verifying

    run = config.load(run_file, options.bindings(gin_flags))
    verification.check(run)
    directory = verification.new_directory(work_dir)
    console = Console(highlight=False, markup=False)
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs, which this process only reads
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the runs are ended too
    try:
        with verifying.ConsoleObserver(console, run.steps) as observer:
            report = verification.verify(
                run, [run_file, *gin_flags], directory, observer, kills=kills, by=signal.Signals[f"SIG{by}"],
                processes=processes, seed=seed,
            )  # fmt: skip
    except verification.RunFailed as error:
        click.echo(f"pretrain: {error}", err=True)
        sys.exit(1)
    except (InputError, KeyboardInterrupt, SystemExit):
        _remove(directory, work_dir)
        raise
    verifying.show(console, report, kills)
    if not report.equal:
        console.print(f"Both runs are in {directory}.", soft_wrap=True)
        sys.exit(1)
    _remove(directory, work_dir)


def _remove(directory: Path, given: Path | None) -> None:
    if given is None:
        shutil.rmtree(directory)
