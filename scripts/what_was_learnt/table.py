"""A model dir to a row, rows to a table, a table to a page."""

import dataclasses
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import measures

from pretrain import config
from pretrain.cli.console import duration
from pretrain.training import loading, records

HEAD = ("run", "steps", "time", "measured on held-out text", "the model", "baseline", "the baseline is")


def measured(model_dir: Path) -> dict[str, Any]:
    """What a trained model learnt, as it is kept."""
    run = config.load(model_dir / config.FILE)
    with loading.opened(model_dir, run) as trained:
        learnt = measures.of(run)(run, trained)
    return {
        "steps": trained.step,
        "seconds": seconds(model_dir),
        **dataclasses.asdict(learnt),
        "beaten": learnt.beaten,
    }


def seconds(model_dir: Path) -> float:
    """How long the steps took, without evaluations, checkpoints and compiling."""
    total, last = 0.0, 0
    for line in records.read(model_dir / records.METRICS):
        if "steps_per_second" in line:
            total += (line["step"] - last) / line["steps_per_second"]
            last = line["step"]
    return total


def draw(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each run, by name, the better figure in bold; and where they were measured."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name in sorted(results):
        row = results[name]
        figures = [f"{row[each]:.3f}" for each in ("of_model", "of_baseline")]
        winner = 0 if row["beaten"] else 1
        figures[winner] = f"**{figures[winner]}**"
        cells = (f"`{name}`", f"{row['steps']:,}", duration(row["seconds"]), row["measure"])
        lines.append(f"| {' | '.join((*cells, *figures, row['baseline'].replace('|', '&#124;')))} |")
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}"
    return "\n".join([*lines, "", f"Measured on {where}."])


def fill(page: Path, drawn: str) -> None:
    """Puts the table between the two comments of the page that are for it."""
    text = page.read_text()
    pattern = re.compile(r"(<!-- what was learnt -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(text):
        sys.exit(f"{page} has no block <!-- what was learnt --> ... <!-- end -->.")
    page.write_text(pattern.sub(lambda found: f"{found[1]}\n{drawn}\n\n{found[2]}", text))
