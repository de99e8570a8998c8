"""Trains the small runs, and measures on held-out text what each of them learnt, beside a trivial baseline.

python scripts/what_was_learnt --dir /tmp/learnt --write docs/objectives.md

Runs that are finished in the directory are not trained again, and others go on where they stopped. The
figures are kept there too, in results.json; the table is made of all that are in it.
"""

import json
import subprocess
import sys
from pathlib import Path

import click

from pretrain import config
from pretrain.cli import options

RUNS = sorted(path.stem for path in (config.shipped() / "runs").glob("*_tiny.gin"))


@click.command()
@click.option("--dir", "place", required=True, type=click.Path(path_type=Path), help="Of the model dirs.")
@click.option("--only", multiple=True, type=click.Choice(RUNS), help="A run; may be given several times.")
@click.option("--steps", type=click.IntRange(min=1), help="Of each run, for a quick try.")
@click.option("--write", type=click.Path(exists=True, path_type=Path), help="A page with a block to fill.")
def main(place: Path, only: tuple[str, ...], steps: int | None, write: Path | None) -> None:
    """Prints a table of what each run learnt."""
    options.quiet_logs()
    import table

    place.mkdir(parents=True, exist_ok=True)
    kept = place / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name in only or RUNS:
        train(name, place / name, steps)
        results[name] = table.measured(place / name)
        kept.write_text(json.dumps(results, indent=2) + "\n")
    drawn = table.draw(results)
    click.echo(drawn)
    if write:
        table.fill(write, drawn)


def train(name: str, model_dir: Path, steps: int | None) -> None:
    """By the command, whose output goes to stderr; where it refuses, all ends."""
    settings = [] if steps is None else [f"--gin.STEPS={steps}"]
    command = [sys.executable, "-m", "pretrain.cli.main", "train", f"runs/{name}.gin", *settings]
    done = subprocess.run([*command, "--model-dir", str(model_dir)], stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)


main()
