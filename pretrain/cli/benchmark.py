"""pretrain benchmark"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from pretrain.benchmarking import TrainBenchmark

AIM = 0.03  # of a step: what the loop may cost on top


@click.group("benchmark")
def command() -> None:
    """Measure how fast a run is on this machine.

    \b
    Example:
      pretrain benchmark train runs/quickstart.gin --steps 40
    """


@command.command("train", context_settings=options.GIN_CONTEXT, short_help="A run's step, loop and data.")
@click.argument("run_file", metavar="RUN.gin")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Timed steps of each kind, in 4 rounds.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Untimed steps before each round of timed ones.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also write the figures to this file.",
)
@options.gin_arguments
def train(run_file: str, steps: int, warmup: int, json_file: Path | None, gin_flags: tuple[str, ...]) -> None:
    """Time the train step of RUN.gin, the train loop around it, and its data alone.

    Tokens per second are useful ones; padding is counted apart. Model FLOPs are those of the matrix
    products, forward once and backward twice, without recomputation.

    \b
    Example:
      pretrain benchmark train runs/quickstart.gin --json quickstart.json --gin.BATCH_SIZE=32
    """
    options.quiet_logs()
    from rich.console import Console

    from pretrain import benchmarking, config
    from pretrain.errors import InputError

    if json_file and not os.access(json_file.absolute().parent, os.W_OK):
        raise InputError(f"--json {json_file}: {json_file.parent} is no directory to write to; make it one.")
    run = config.load(run_file, options.bindings(gin_flags))
    console = Console(highlight=False)
    with console.status("starting") as status:
        result = benchmarking.train(
            run, steps=steps, warmup=warmup, say=lambda what: status.update(f"measuring {what}")
        )
    for line in _summary(result):
        console.print(line)
    console.print(_table(result))
    rounds = result.overheads
    console.print(
        f"the loop adds [bold]{result.overhead:.1%}[/] to a step (median of {len(rounds)} rounds, "
        f"{min(rounds):.1%} to {max(rounds):.1%}; aim: at most {AIM:.0%}), "
        f"and {result.cpu_overhead:.1%} of CPU time"
    )
    if json_file:
        json_file.write_text(
            json.dumps({"run": run_file, "settings": gin_flags, **result.figures()}, indent=2)
        )


def _summary(result: "TrainBenchmark") -> list[str]:
    from pretrain.cli.console import si

    machine, data, memory = result.machine, result.data, result.memory
    step = result.speed(result.bare)["seconds"]
    names = {"device": "of a device", "process": "of the process, up to the bare step"}
    return [
        f"[bold]machine[/]  {machine.devices} x {machine.device_kind}, {machine.processor}, "
        f"{machine.cores} cores, jax {machine.jax}, Python {machine.python}",
        f"[bold]model[/]    {si(result.parameters)} parameters, {si(result.flops)}FLOP a step",
        f"[bold]compile[/]  {result.compile_seconds:.1f} s",
        f"[bold]memory[/]   peak {si(memory.bytes)}B {names[memory.of]}",
        f"[bold]batch[/]    {si(data.tokens)} tokens (with padding {si(result.padded_tokens)}) in "
        f"{data.examples:.1f} examples",
        f"[bold]data[/]     alone {1000 * data.seconds:.2f} ms a batch, "
        f"{data.seconds / step:.1%} of a bare step; first after {data.first_batch_seconds:.1f} s",
    ]


def _table(result: "TrainBenchmark") -> "Table":
    from rich.table import Table

    from pretrain.cli.console import si

    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("")
    for name in ("bare step", "in the loop"):
        table.add_column(name, justify="right")
    both = (result.speed(result.bare), result.speed(result.loop))
    for key, name in (
        ("seconds", "median"),
        ("min_seconds", "least"),
        ("max_seconds", "most"),
        ("cpu_seconds", "of CPU"),
    ):
        table.add_row(f"ms a step, {name}", *(f"{1000 * speed[key]:,.1f}" for speed in both))
    for key, name in (
        ("tokens_per_second", "tokens/s"),
        ("padded_tokens_per_second", "tokens/s with padding"),
        ("examples_per_second", "examples/s"),
        ("model_flops_per_second", "model FLOP/s"),
    ):
        table.add_row(name, *(si(speed[key]) for speed in both))
    if "model_flops_utilisation" in both[0]:
        table.add_row("MFU", *(f"{speed['model_flops_utilisation']:.1%}" for speed in both))
    return table
