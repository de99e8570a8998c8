"""The `pretrain` command: finds the subcommand, and turns what goes wrong into an exit code.

Nothing heavy is imported here: `pretrain --help` answers at once. 0: done. 1: the run failed. 2: the input
was wrong, said in one sentence.
"""

import importlib
import os
import sys
import traceback

import click

from pretrain import __version__
from pretrain.errors import InputError

COMMANDS = {
    "train": "Train, or go on where a model dir stopped.",
    "evaluate": "Loss, accuracy, perplexity and bits per byte on a split.",
    "generate": "Infill (T5) or continue (decoders) a prompt.",
    "inspect": "Show the examples a run feeds its model.",
    "verify-resume": "Prove that a run survives kills bit for bit.",
    "cache": "Tokenize a corpus once, into an indexed store.",
    "plan": "What a run needs on devices that are not here.",
    "benchmark": "Measure the speed of a run's steps, data or decoding.",
}


class Commands(click.Group):
    """Imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"pretrain.cli.{cmd_name.replace('-', '_')}").command

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
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except (InputError, click.ClickException) as error:
        if debug:
            traceback.print_exc()
        click.echo(f"pretrain: {_sentence(error)}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(1)


def _sentence(error: InputError | click.ClickException) -> str:
    """What is wrong; for a command line that click refused, also where its options are listed."""
    if not isinstance(error, click.ClickException):
        return str(error)
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx:
        message = f"{message.rstrip('.')}; see `{error.ctx.command_path} -h`."
    return message


if __name__ == "__main__":
    main()
