"""pretrain plan"""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from pretrain.cli import options
from pretrain.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pretrain.parallel.topologies import Topology
    from pretrain.planning import Plan, TooLarge
    from pretrain.run import RunConfig

GIB = 2**30


@click.command("plan", context_settings=options.GIN_CONTEXT)
@click.argument("source", metavar="RUN.gin|MODEL_DIR")
@click.option("--topology", required=True, help="Such as v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4 or cpu:8.")
@click.option("--slices", type=click.IntRange(min=1), default=1, show_default=True, help="Of that topology.")
@click.option(
    "--tokens",
    type=click.FloatRange(min=0, min_open=True),
    help="Also say how long training on so many takes, such as 1e12.",
)
@click.option(
    "--search", is_flag=True, help="Try meshes, remat and larger batches, and show the best that fit."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON and nothing else: an object, of a search a list."
)
@options.gin_arguments
def command(
    source: str, topology: str, slices: int, tokens: float | None, search: bool, as_json: bool,
    gin_flags: tuple[str, ...],
) -> None:  # fmt: skip
    """What the train step of RUN.gin needs on devices that you do not have.

    Their own compiler compiles it: memory of a device, what is computed, read, written and exchanged, and how
    fast a step can be at best. Reads no data. TPUs need `pip install 'pretrain[tpu]'`, and no TPU.

    \b
    Example:
      pretrain plan runs/quickstart.gin --topology v5e:2x4 --gin.BATCH_SIZE=64
    """
    options.quiet_logs()
    if tokens and (search or as_json):
        raise InputError("--tokens is for the table of one run: leave it away with --search and --json.")
    import jax

    jax.config.update("jax_platforms", "cpu")
    from rich.console import Console

    from pretrain import planning
    from pretrain.parallel.topologies import Topology

    where = Topology(topology, slices)
    where.devices()  # before anything is built: CPUs must be asked for first
    run = options.run_of(source, gin_flags)
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    if search:
        found = _search(console, run, where)
        if as_json:
            click.echo(json.dumps([each.figures() for each in found]))
        else:
            console.print(_best(found))
        if not found:
            click.echo("pretrain: Nothing that was tried fits.", err=True)
            sys.exit(1)
        return
    try:
        with console.status(f"compiling for {topology} ..."):
            made = planning.plan(run, where)
    except planning.TooLarge as error:
        with console.status("looking for a change that makes it fit ..."):
            fitting = planning.first_that_fits(run, where)
        _too_large(error, fitting and fitting[0], as_json)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(made.figures()))
        return
    for table in _tables(made, tokens):
        console.print(table)


def _too_large(error: "TooLarge", change: str | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"fits": False, **dataclasses.asdict(error), "change": change}))
    way = f"it would with {change}" if change else "nor would it with any change that was tried"
    click.echo(
        f"pretrain: It does not fit: a device would need {error.needed / GIB:.2f} GiB, "
        f"{(error.needed - error.available) / GIB:.2f} more than the compiler has; {way}.",
        err=True,
    )


def _search(console: "Console", run: "RunConfig", where: "Topology") -> "list[Plan]":
    from pretrain.planning import Plan, TooLarge, search

    def tried(other: "RunConfig", result: "Plan | Exception") -> None:
        if isinstance(result, Plan):
            speed = f", {result.tokens / result.seconds:,.0f} tokens/s at best" if result.seconds else ""
            said = f"{result.memory.total / GIB:.1f} GiB{speed}"
        else:
            said = f"does not fit: {result}" if isinstance(result, TooLarge) else f"cannot be: {result}"
        console.print(f"{_name(other)}: {said}")

    return search(run, where, tried)


def _name(run: "RunConfig") -> str:
    from pretrain.parallel.mesh import described

    sizes = {axis: getattr(run.mesh, axis) for axis in vars(run.mesh)}
    return f"batch {run.batch_size}, {described(sizes)}, remat {run.model.remat}"


def _grid(title: str) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_row(f"[bold]{title}[/]")
    return table


def _tables(made: "Plan", tokens: float | None) -> "list[Table]":
    return [_what(made), _memory(made), _work(made), _exchanges(made), _speed(made, tokens)]


def _what(made: "Plan") -> "Table":
    from pretrain.parallel.mesh import described

    table = _grid("plan")
    slices = f"{made.topology.slices} slices of " if made.topology.slices > 1 else ""
    table.add_row("devices", f"{slices}{made.topology.name}: {made.devices}, {described(made.mesh)}")
    table.add_row("model", f"{made.parameters:,} parameters, remat {made.run.model.remat}")
    parts = f" in {made.run.microbatches} parts" if made.run.microbatches > 1 else ""
    table.add_row(
        "batch", f"{made.run.batch_size:,}{parts} x {dict(made.run.lengths)} = {made.tokens:,} tokens"
    )
    table.add_row("compiled in", f"{made.compile_seconds:.0f} s")
    return table


def _memory(made: "Plan") -> "Table":
    table = _grid("memory of a device")
    for name, size in vars(made.memory).items():
        table.add_row(name, f"{size / GIB:.3f} GiB")
    if made.chip:
        table.add_row(
            "in all",
            f"{made.memory.total / GIB:.3f} GiB of {made.chip.memory / GIB:.0f}: fits",
        )
    else:
        table.add_row("in all", f"{made.memory.total / GIB:.3f} GiB")
    return table


def _work(made: "Plan") -> "Table":
    table = _grid("a step")
    table.add_row("model FLOPs", f"{made.model_flops:.3e}")
    table.add_row(
        "computed FLOPs", f"{made.flops:.3e}, {made.flops / made.model_flops:.2f} times those of the model"
    )
    table.add_row("read and written", f"{made.cost.bytes / 1e9:,.2f} GB a device")
    return table


def _exchanges(made: "Plan") -> "Table":
    table = _grid("exchanged by a device")
    for each in made.cost.collectives:
        among = f"{each.members} {'slices' if each.between_slices else 'devices'}"
        table.add_row(f"{each.count:,} {each.kind}", f"among {among}: {each.bytes / 1e9:,.3f} GB")
    if made.cost.searches:
        table.add_row(f"{made.cost.searches} loops", "of unknown length, counted once")
    if not made.cost.collectives:
        table.add_row("nothing")
    return table


def _speed(made: "Plan", tokens: float | None) -> "Table":
    table = _grid("at best")
    for name, seconds in made.bounds().items():
        table.add_row(name, f"{1000 * seconds:,.2f} ms a step")
    if made.compiler_seconds:
        table.add_row(
            "as compiled", f"{1000 * made.compiler_seconds:,.2f} ms a step, by the compiler's estimate"
        )
    if made.seconds is None or made.utilisation is None:
        table.add_row("not known of this kind of device")
        return table
    speed = made.tokens / made.seconds
    table.add_row("tokens/s", f"{speed:,.0f}, padding included")
    table.add_row("MFU", f"{made.utilisation:.1%}")
    if tokens:
        table.add_row(
            f"{tokens:g} tokens", f"{tokens / speed / 86400:,.2f} days, {tokens / made.tokens:,.0f} steps"
        )
    return table


def _best(found: "list[Plan]") -> "Table":
    from rich.table import Table

    table = Table("run", "GiB a device", "ms a step", "tokens/s", "MFU", box=None, pad_edge=False)
    for each in found[:10]:
        speed, seconds = ["", "", ""], each.seconds
        if seconds is not None and each.utilisation is not None:
            speed = [f"{1000 * seconds:,.1f}", f"{each.tokens / seconds:,.0f}", f"{each.utilisation:.1%}"]
        table.add_row(_name(each.run), f"{each.memory.total / GIB:.2f}", *speed)
    return table
