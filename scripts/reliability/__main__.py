"""Measures what docs/reliability.md says, and writes it there.

python scripts/reliability kills --number 200
python scripts/reliability all

Each section fills one block of the page, with the command that made it.
"""

import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import click
import jax

from pretrain.cli import options

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SECTIONS = ("kills", "terms", "damage", "seek", "save", "ledger", "caching")


@click.command()
@click.argument("sections", nargs=-1, required=True, type=click.Choice([*SECTIONS, "all"]))
@click.option("--number", type=click.IntRange(min=1), help="Of signals.  [default: 200 kills, 50 terms]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of the moments; others fill a block of theirs."
)
@click.option("--processes", type=click.IntRange(1, 2), help="Of the runs.  [default: some have 1, some 2]")
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count(), help="Runs at a time.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where the runs are made, and stay.")
@click.option("--page", type=click.Path(path_type=Path), default=PAGE, help="What is written to.")
def main(
    sections: tuple[str, ...],
    number: int | None,
    seed: int,
    processes: int | None,
    jobs: int,
    work_dir: Path | None,
    page: Path,
) -> None:
    """Fills SECTIONS of the page."""
    options.quiet_logs()
    jax.config.update("jax_platforms", "cpu")
    import damage
    import signals
    import speed

    for section in SECTIONS if "all" in sections else sections:
        with tempfile.TemporaryDirectory() as temporary:
            place = (work_dir or Path(temporary)) / section
            if place.exists():
                sys.exit(f"{place} is there already; give another --work-dir.")
            place.mkdir(parents=True)
            command, block = f"python scripts/reliability {section}", section
            if section in ("kills", "terms"):
                count = number or signals.DEFAULT[section]
                rows = signals.table(place, section, count, jobs, seed, processes)
                command += f" --number {count}"
                command += f" --processes {processes}" if processes else ""
                if seed:
                    command, block = f"{command} --seed {seed}", f"{section}, seed {seed}"
            elif section == "damage":
                rows = damage.table(place)
            else:
                rows = getattr(speed, section)(place)
        fill(page, block, command, rows)


def fill(page: Path, section: str, command: str, rows: list[tuple[str, ...]]) -> None:
    """Replaces what stands between the two comments of a section."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    table = "\n".join([head, "|" + "---|" * len(rows[0]), *body])
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}"
    block = f"```bash\n{command}\n```\n\n{table}\n\nMeasured on {where}."
    text = page.read_text()
    click.echo(block)
    pattern = re.compile(rf"(<!-- {section} -->\n)(?:(?!<!-- end -->).)*(<!-- end -->)", re.S)
    if not pattern.search(text):
        sys.exit(f"{page} has no block {section}.")
    page.write_text(pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text))


main()
