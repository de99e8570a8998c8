"""A picture of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.errors import InputError


def check() -> None:
    """Raises InputError where the library that draws is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'pretrain[plot]'.") from error


def write(path: Path, title: str, samples: Mapping[str, Sequence[float]]) -> None:
    """A PNG with a row for each kind of sample: dots, in milliseconds, and a line at their median."""
    import matplotlib.figure
    import numpy as np

    figure = matplotlib.figure.Figure(figsize=(8, 1.2 + 0.8 * len(samples)), layout="constrained")
    axes = figure.add_subplot()
    for row, seconds in enumerate(samples.values()):
        values = 1000 * np.asarray(seconds)
        spread = np.linspace(-0.15, 0.15, len(values))  # so that equal ones do not hide each other
        axes.scatter(values, row + spread, s=14, alpha=0.6)
        middle = float(np.median(values))
        axes.plot([middle, middle], [row - 0.3, row + 0.3], color="black", linewidth=1.5)
        axes.annotate(f"{middle:,.4g}", (middle, row - 0.32), va="bottom", fontsize=9)
    axes.set_yticks(range(len(samples)), list(samples))
    axes.set_ylim(len(samples) - 0.5, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds; the line is the median")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150, format="png")
