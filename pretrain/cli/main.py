"""The `pretrain` command: finds the subcommand, and turns what goes wrong into an exit code.

Nothing heavy is imported here: `pretrain --help` answers at once. 0: done. 1: the run failed. 2: the input
was wrong, said in one sentence.
"""

import importlib
import os
import sys

import click

from pretrain import __version__
from pretrain.errors import InputError

COMMANDS = {
    "train": "Train, or go on where a model dir stopped.",
    "evaluate": "Loss, accuracy, perplexity and bits per byte on a split.",
    "generate": "Infill (T5) or continue (decoders) a prompt.",
    "inspect": "Show the examples a run feeds its model.",
    "benchmark": "Measure the speed of a run's step and loop.",
}


class Commands(click.Group):
    """Imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"pretrain.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="pretrain %(version)s")
def cli() -> None:
    """Pretraining in JAX: SeqIO corpora, an objective to choose, sharded Flax models.

    \b
    Example:
      pretrain train runs/quickstart.gin --model-dir /tmp/quickstart
    """


def main() -> None:
    """The console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault(
        "TF_ENABLE_ONEDNN_OPTS", "0"
    )  # TensorFlow only reads data; its kernels do not matter
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        cli.main(arguments, prog_name="pretrain", standalone_mode=False)
    except (InputError, click.ClickException) as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"pretrain: {message}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(1)


if __name__ == "__main__":
    main()
