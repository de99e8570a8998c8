"""pretrain train"""

import sys
from pathlib import Path

import click

from pretrain.cli import options
from pretrain.errors import InputError


@click.command("train", context_settings=options.GIN_CONTEXT)
@click.argument("run_file", metavar="RUN.gin")
@click.option("--model-dir", required=True, type=click.Path(path_type=Path), help="Where the run lives.")
@click.option(
    "--allow-config-change", is_flag=True, help="Go on with other settings than the model dir holds."
)
@click.option(
    "--skip-steps", metavar="A:B", help="Go back to before step A; leave out what A to B-1 were fed."
)
@click.option(
    "--stall-seconds", type=click.FloatRange(min=0, min_open=True),
    help="Print all stacks when the run waits for one thing so long.  [default: never]",
)  # fmt: skip
@click.option("--profile", metavar="A:B", help="Write an XLA trace of steps A to B-1 for TensorBoard.")
@click.option("--end-on-stall", is_flag=True, help="And end with code 1, for a supervisor to start it again.")
@options.of_processes
@options.gin_arguments
def command(
    run_file: str, model_dir: Path, allow_config_change: bool, skip_steps: str | None,
    stall_seconds: float | None, profile: str | None, end_on_stall: bool, gin_flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Train RUN.gin in a model dir; the same command again goes on where it stopped, bit for bit.

    \b
    Example:
      pretrain train runs/quickstart.gin --model-dir /tmp/quickstart --gin.STEPS=200
    """
    skipped = None if skip_steps is None else steps_range("--skip-steps", skip_steps)
    profiled = None if profile is None else steps_range("--profile", profile)
    if end_on_stall and stall_seconds is None:
        raise InputError("--end-on-stall needs --stall-seconds, how long a stall is; give both.")
    from rich.console import Console

    options.quiet_logs()
    import jax

    from pretrain import config
    from pretrain.bad_steps import Diverged
    from pretrain.checkpointing import NotSaved
    from pretrain.cli.console import ConsoleObserver
    from pretrain.training import loop, model_dirs, records
    from pretrain.training.stopping import Stop
    from pretrain.training.watchdog import Watchdog

    run, text = config.load_with_text(run_file, options.bindings(gin_flags))

    def admit() -> None:
        model_dirs.refuse_other_things(model_dir)
        if allow_config_change:
            model_dirs.refuse_other_data(model_dir, text, config.data_difference)
        else:
            model_dirs.refuse_another_run(model_dir, text, config.difference, config.data_difference)

    admit()
    console = Console(markup=False)
    done = model_dirs.latest_step(model_dir)
    complete = done >= run.steps and records.finished(model_dir, run.steps) and not skipped
    if complete and not jax.distributed.is_initialized():  # several would not all see it
        console.print(
            f"{model_dir} is complete: step {done:,} of {run.steps:,}. Nothing to do.", soft_wrap=True
        )
        return
    observer = ConsoleObserver(console)
    try:
        with Stop() as stop, Watchdog(stall_seconds, ends=end_on_stall) as watchdog:
            last = loop.train(
                run, text, model_dir, observer, stop,
                watchdog=watchdog, skip_steps=skipped, profile=profiled, admit=admit,
            )  # fmt: skip
    except (Diverged, NotSaved, records.NotWritten) as error:
        observer.stop()
        kept = _what_is_left(model_dirs.latest_step(model_dir))
        click.echo(f"pretrain: {error} {kept}; {ADVICE[type(error).__name__]}.", err=True)
        sys.exit(1)
    finally:
        observer.stop()
    if not records.finished(model_dir, run.steps):
        console.print(f"Stopped and saved at step {last:,}; run the same command to go on.")
    else:
        console.print(f"Done: step {last:,}. Next: pretrain evaluate {model_dir}", soft_wrap=True)


ADVICE = {
    "Diverged": "lower the learning rate or clip_norm, or look at the data of that step",
    "NotSaved": "make room or mend the disk, then run the same command again",
    "NotWritten": "make room or mend the disk, then run the same command again",
}


def _what_is_left(step: int) -> str:
    return f"The last good checkpoint, of step {step}, is kept" if step else "There was no checkpoint yet"


def steps_range(flag: str, text: str) -> range:
    """The steps that "A:B" names, B not among them. Raises InputError.

    >>> steps_range("--profile", "1200:1250")
    range(1200, 1250)
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 0 < int(first) < int(last)):
        raise InputError(f"{flag} is {text!r}; write A:B for the steps from A to B-1, such as 1200:1250.")
    return range(int(first), int(last))
