#!/usr/bin/env python
"""Times the train step of public peers beside ours: the same shapes, float32, AdamW, no dropout, on CPUs.

    python scripts/benchmark_peers.py --env /tmp/peers --rounds 6

The peers live in an environment of their own, made at the first run. Every program starts, and compiles,
alone; then they take turns, a few steps each, in an order that changes from round to round. What counts are
the ratios within a round: the speed of a machine drifts, and drifts for all.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import click
import jax
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from job import SHAPES, Shape  # noqa: E402

from pretrain.benchmarks.measuring import machine  # noqa: E402
from pretrain.parallel.mesh import MeshConfig  # noqa: E402

# The last transformers with models in Flax, and a PyTorch that it works with.
PACKAGES = ("torch==2.13.0", "transformers==4.57.1", "jax[cpu]==0.10.2", "flax==0.12.8", "optax==0.2.8")
OURS, PRODUCT = "pretrain", "one large product, by XLA"
FIELDS = ('attention="rows"', "unroll=8")  # of our models: what suits a CPU, as docs/performance.md says
PEERS = {
    "encoder_decoder": {
        "HF T5, PyTorch eager": ("hf_torch.py", "eager"),
        "HF T5, PyTorch compiled": ("hf_torch.py", "compiled"),
        "HF T5, Flax": ("hf_flax.py",),
    },
    "decoder": {
        "HF Llama, PyTorch eager": ("hf_torch.py", "eager"),
        "HF Llama, PyTorch compiled": ("hf_torch.py", "compiled"),
    },
}


@dataclasses.dataclass
class Program:
    """One that is timed: it computes while it is asked to, and else waits."""

    name: str
    process: subprocess.Popen
    log: Path
    parameters: int
    compile_seconds: float
    flops: float | None
    rounds: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, name: str, python: Path, script: str, arguments: Sequence[str], log: Path) -> "Program":
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        with log.open("w") as errors:
            process = subprocess.Popen(
                [python, HERE / "peers" / script, *arguments], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        return cls(name, process, log, **answer(name, process, log))

    def run(self, steps: int) -> float:
        """Median seconds of a step; the first, in which the machine turns to it, is not counted."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # of one that has ended: `answer` says so
            self.process.stdin.write(f"{steps + 1}\n")
            self.process.stdin.flush()
        self.rounds.append(statistics.median(answer(self.name, self.process, self.log)["seconds"][1:]))
        return self.rounds[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def answer(name: str, process: subprocess.Popen, log: Path) -> dict:
    """The next line that the program says. Ends the script if it says none any more."""
    assert process.stdout
    if not (line := process.stdout.readline()):
        sys.exit(f"{name} ended before its time; the last it said:\n{log.read_text()[-2000:]}")
    return json.loads(line)


def made_environment(place: Path) -> Path:
    """The Python of the peers' environment, made if it is not there."""
    python, ready = place / "bin" / "python", place / "pretrain-peers"
    packages = "\n".join(PACKAGES)
    if not ready.exists() or ready.read_text() != packages:
        if place.exists() and not ready.exists():
            sys.exit(f"{place} is there, and not one that this script has made: give another --env.")
        click.echo(f"Making {place}: {' '.join(PACKAGES)}", err=True)
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        ready.write_text("not yet")
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        ready.write_text(packages)
    return python


def compared(
    family: str,
    python: Path,
    fields: Sequence[str],
    rounds: int,
    steps: int,
    only: Sequence[str],
    place: Path,
) -> list[Program]:
    """Ours, then its peers, and last a bare product of matrices, after their rounds."""
    console = Console(stderr=True)
    programs: list[Program] = []
    commands = {OURS: (Path(sys.executable), "ours.py", [family, *FIELDS, *fields])}
    for name, (script, *mode) in PEERS[family].items():
        if not only or any(part.lower() in name.lower() for part in only):
            commands[name] = (python, script, [family, *mode])
    commands[PRODUCT] = (Path(sys.executable), "products.py", [family])
    try:
        with console.status("") as status:
            for number, (name, command) in enumerate(commands.items()):
                status.update(f"{name}: compiling")
                programs.append(Program.start(name, *command, place / f"{family}_{number}.log"))
            for number in range(rounds):
                for program in random.Random(number).sample(programs, len(programs)):
                    status.update(f"round {number + 1} of {rounds}: {program.name}")
                    program.run(steps)
    finally:
        for program in programs:
            program.end()
    return programs


def figures(shape: Shape, programs: Sequence[Program]) -> list[dict]:
    """Of each program. ratio: how long one of its steps takes, in steps of ours of the same round.

    A peer's operations are counted as ours are, by the formula of docs/metrics.md, whatever it leaves out.
    """
    ours = programs[0]
    lines = []
    for program in programs:
        ratios = [theirs / own for theirs, own in zip(program.rounds, ours.rounds, strict=True)]
        seconds = statistics.median(program.rounds)
        line = {"name": program.name, "flops_per_second": (program.flops or ours.flops) / seconds}
        if program.name != PRODUCT:
            line |= {
                "parameters": program.parameters, "compile_seconds": program.compile_seconds,
                "seconds": seconds, "tokens_per_second": shape.tokens / seconds,
                "ratio": statistics.median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios),
            }  # fmt: skip
        lines.append(line)
    return lines


def table(family: str, lines: Sequence[dict]) -> Table:
    made = Table(title=f"{family}: {SHAPES[family]}", title_justify="left", box=None, padding=(0, 3, 0, 0))
    made.add_column("")
    columns = (
        "GFLOP/s",
        "parameters",
        "compile, s",
        "ms a step",
        "tokens/s",
        "ours is faster by",
        "of rounds",
    )
    for name in columns:
        made.add_column(name, justify="right")
    for line in lines:
        cells = [line["name"], f"{line['flops_per_second'] / 1e9:.0f}"]
        if line["name"] != PRODUCT:
            cells += [
                f"{line['parameters']:,}", f"{line['compile_seconds']:.0f}", f"{1000 * line['seconds']:,.0f}",
                f"{line['tokens_per_second']:,.0f}", f"{line['ratio']:.2f}",
                f"{line['least_ratio']:.2f} to {line['most_ratio']:.2f}",
            ]  # fmt: skip
        made.add_row(*cells)
    return made


@click.command()
@click.option("--env", type=click.Path(path_type=Path), required=True, help="Where the peers are installed.")
@click.option("--shape", type=click.Choice([*SHAPES]), multiple=True, help="[default: all]")
@click.option("--only", multiple=True, help="A part of a peer's name.  [default: all of them]")
@click.option("--rounds", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=2, show_default=True, help="In each round.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("fields", nargs=-1, metavar="[MODEL_FIELD=VALUE]...")
def main(
    env: Path, shape: tuple[str, ...], only: tuple[str, ...], rounds: int, steps: int, json_file: Path | None,
    fields: tuple[str, ...],
) -> None:  # fmt: skip
    """Prints how fast we are beside our peers. A field of our models is set as in attention='"plain"'."""
    names = [name.lower() for family in shape or SHAPES for name in PEERS[family]]
    for part in only:
        if not any(part.lower() in name for name in names):
            raise click.UsageError(f"--only {part}: no peer of these shapes has it in its name.")
    jax.config.update("jax_platforms", "cpu")  # here too: nobody is to hold an accelerator
    python = made_environment(env)
    here = machine(MeshConfig().build())
    console = Console(width=140, highlight=False)
    console.print(f"{here.processor}, {here.cores} cores, jax {here.jax}; peers: {', '.join(PACKAGES)}")
    results = {}
    for family in shape or SHAPES:
        programs = compared(family, python, fields, rounds, steps, only, env)
        results[family] = figures(SHAPES[family], programs)
        console.print(table(family, results[family]))
    if json_file:
        json_file.write_text(json.dumps({"machine": dataclasses.asdict(here), **results}, indent=2))


if __name__ == "__main__":
    main()
