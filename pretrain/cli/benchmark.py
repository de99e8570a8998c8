"""pretrain benchmark"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pretrain.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from pretrain.benchmarks.data import DataBenchmark
    from pretrain.benchmarks.decode import DecodeBenchmark
    from pretrain.benchmarks.measuring import Machine
    from pretrain.benchmarks.train import TrainBenchmark
    from pretrain.run import RunConfig

AIM = 0.03  # of a step: what the loop may cost on top
Say = Callable[[str], None]  # what is being measured


class Result(Protocol):
    @property
    def machine(self) -> "Machine": ...
    def figures(self) -> dict[str, Any]: ...
    def samples(self) -> Mapping[str, Sequence[float]]: ...


@click.group("benchmark")
def command() -> None:
    """Measure how fast a run is on this machine.

    \b
    Example:
      pretrain benchmark train runs/quickstart.gin --steps 40
    """


def _number(name: str, default: int, text: str, least: int = 1) -> Callable:
    return click.option(name, type=click.IntRange(min=least), default=default, show_default=True, help=text)


def _benchmark(short_help: str, lines: Callable[[Any], list]) -> Callable:
    """Makes a subcommand of `measure(run, say, **its own options)`, shown in these lines."""

    def decorate(measure: Callable[..., Result]) -> click.Command:
        @functools.wraps(measure)  # with the options that `measure` was given, and its text
        def run(
            source: str, gin_flags: tuple[str, ...], json_file: Path | None, plot_file: Path | None, **own
        ):
            _show(source, gin_flags, json_file, plot_file, functools.partial(measure, **own), lines)

        file = click.Path(dir_okay=False, writable=True, path_type=Path)
        for add in (
            options.gin_arguments,
            click.option("--plot", "plot_file", type=file, help="Also draw the figures into this PNG."),
            click.option("--json", "json_file", type=file, help="Also write the figures to this file."),
            click.argument("source", metavar="RUN.gin|MODEL_DIR"),
        ):
            add(run)
        return command.command(context_settings=options.GIN_CONTEXT, short_help=short_help)(run)

    return decorate


def _show(
    source: str, gin_flags: tuple[str, ...], json_file: Path | None, plot_file: Path | None,
    measure: Callable[["RunConfig", Say], Result], lines: Callable[[Any], list],
) -> None:  # fmt: skip
    """Measures, prints, and writes what was asked for, after a look at where that is to go."""
    options.quiet_logs()
    from rich.console import Console

    from pretrain.errors import InputError

    for flag, file in (("--json", json_file), ("--plot", plot_file)):
        if file and not os.access(file.absolute().parent, os.W_OK):
            raise InputError(f"{flag} {file}: {file.parent} is no directory to write to; make it one.")
    if plot_file:
        from pretrain.benchmarks import plot

        plot.check()
    run = options.run_of(source, gin_flags)
    console = Console(highlight=False)
    with console.status("starting") as status:
        result: Result = measure(run, lambda what: status.update(f"measuring {what}"))
    for line in (_machine(result.machine), *lines(result)):
        console.print(line, soft_wrap=True)
    if json_file:
        json_file.write_text(json.dumps({"run": source, "settings": gin_flags, **result.figures()}, indent=2))
    if plot_file:
        plot.write(plot_file, f"{source} {' '.join(gin_flags)}".strip(), result.samples())


def _machine(machine: "Machine") -> str:
    return (
        f"[bold]machine[/]  {machine.devices} x {machine.device_kind}, {machine.processor}, "
        f"{machine.cores} cores, jax {machine.jax}, Python {machine.python}"
    )


def _of_training(result: "TrainBenchmark") -> list:
    from pretrain.cli.console import si

    data, memory, rounds = result.data, result.memory, result.overheads
    step = result.speed(result.bare)["seconds"]
    names = {"device": "of a device", "process": "of the process, up to the bare step"}
    return [
        f"[bold]model[/]    {si(result.parameters)} parameters, {si(result.flops)}FLOP a step",
        f"[bold]compile[/]  {result.compile_seconds:.1f} s",
        f"[bold]memory[/]   peak {si(memory.bytes)}B {names[memory.of]}",
        f"[bold]batch[/]    {si(data.tokens)} tokens (with padding {si(result.padded_tokens)}) in "
        f"{data.examples:.1f} examples",
        f"[bold]data[/]     alone {1000 * data.seconds:.2f} ms a batch, "
        f"{data.seconds / step:.1%} of a bare step; first after {data.first_batch_seconds:.1f} s",
        _table_of_training(result),
        f"the loop adds [bold]{result.overhead:.1%}[/] to a step (median of {len(rounds)} rounds, "
        f"{min(rounds):.1%} to {max(rounds):.1%}; aim: at most {AIM:.0%}), "
        f"and {result.cpu_overhead:.1%} of CPU time",
    ]


def _table_of_training(result: "TrainBenchmark") -> "Table":
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


def _of_data(result: "DataBenchmark") -> list:
    from pretrain.cli.console import si

    figures = result.figures()
    data = figures["data"]
    return [
        f"[bold]batch[/]    {si(data['tokens'])} tokens in {data['examples']:.1f} examples, "
        f"{data['padding']:.1%} of it padding",
        f"[bold]alone[/]    {1000 * data['seconds']:.2f} ms a batch, "
        f"{si(data['tokens_per_second'])} tokens/s ({si(data['tokens_per_cpu_second'])} a CPU second); "
        f"first after {data['first_batch_seconds']:.1f} s",
        f"[bold]steps[/]    {1000 * figures['step_seconds']:,.1f} ms, of which they wait for data "
        f"[bold]{result.share_waited:.1%}[/]",
    ]


def _of_decoding(result: "DecodeBenchmark") -> list:
    from pretrain.cli.console import si

    figures = result.figures()
    return [
        f"[bold]prompt[/]   {result.rows} x {result.prompt} tokens: {1000 * result.prompt_seconds:,.1f} ms "
        f"until the first token, {si(figures['prompt_tokens_per_second'])} tokens/s",
        f"[bold]tokens[/]   {1000 * result.token_seconds:,.2f} ms each after it, "
        f"{si(figures['tokens_per_second'])} tokens/s in all",
        f"[bold]memory[/]   the parameters are read at {si(figures['model_bytes_per_second'])}B/s",
    ]


@_benchmark("A run's step, loop and data.", _of_training)
@_number("--steps", 20, "Timed steps of each kind, in 4 rounds.")
@_number("--warmup", 5, "Untimed steps before each round of timed ones.")
def train(run: "RunConfig", say: Say, steps: int, warmup: int) -> "TrainBenchmark":
    """Time the train step of a run, the train loop around it, and its data alone.

    Tokens per second are useful ones; padding is counted apart. Model FLOPs are those of the matrix
    products, forward once and backward twice, without recomputation.

    \b
    Example:
      pretrain benchmark train runs/quickstart.gin --json quickstart.json --gin.BATCH_SIZE=32
    """
    from pretrain.benchmarks import train

    return train.benchmark(run, steps=steps, warmup=warmup, say=say)


@_benchmark("A run's data alone, and beside its steps.", _of_data)
@_number("--steps", 50, "Timed batches, and steps.")
@_number("--warmup", 10, "Untimed ones before them.")
def data(run: "RunConfig", say: Say, steps: int, warmup: int) -> "DataBenchmark":
    """Time the data pipeline of a run by itself, and how long its steps wait for it.

    \b
    Example:
      pretrain benchmark data runs/quickstart.gin --steps 200
    """
    from pretrain.benchmarks import data

    return data.benchmark(run, steps=steps, warmup=warmup, say=say)


@_benchmark("A run's model, writing token after token.", _of_decoding)
@_number("--rows", 8, "Prompts at a time.")
@_number("--prompt", 64, "Tokens of each prompt.")
@_number("--tokens", 32, "New tokens for each.", least=2)
@_number("--tries", 5, "How often it is timed.")
def decode(run: "RunConfig", say: Say, rows: int, prompt: int, tokens: int, tries: int) -> "DecodeBenchmark":
    """Time greedy generation with a run's model: until the first token, and each token after it.

    Its parameters are random, which takes as long.

    \b
    Example:
      pretrain benchmark decode runs/quickstart.gin --rows 4
    """
    from pretrain.benchmarks import decode

    return decode.benchmark(run, rows=rows, prompt=prompt, tokens=tokens, tries=tries, say=say)
