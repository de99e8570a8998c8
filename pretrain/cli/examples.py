"""Drawing of figures and of examples that a model filled in."""

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from pretrain.inference.held_out import Filled
from pretrain.run import RunConfig

SENTINEL = re.compile(r"<extra_id_\d+>")


def show_figures(
    console: Console, run: RunConfig, step: int, figures: Mapping[str, float], baselines: Mapping[str, float]
) -> None:
    """A table of the figures, with what the text's own statistics reach beside bits per byte."""
    table = Table(
        title=f"{run.corpus().name}, {run.eval_split}, step {step:,}", title_justify="left", box=None
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(
            name.replace("_", " "), f"{value:.4f}", style="bold" if name == "bits_per_byte" else None
        )
    for name, value in baselines.items():
        table.add_row(f"  {name.split('_')[0]} entropy of the same text", f"{value:.4f}")
    console.print(table)
    model, unigram, bigram = figures.get("bits_per_byte"), *baselines.values()
    if model is not None:
        place = (
            "above the unigram"
            if model >= unigram
            else "below the unigram"
            if model >= bigram
            else "below the bigram"
        )
        console.print(f"{model:.3f} bits per byte is {place} entropy.")


def show_filled(console: Console, run: RunConfig, filled: Sequence[Filled]) -> None:
    """A panel an example: what the model saw, what it said, what was there."""
    for number, example in enumerate(filled, 1):
        console.print(Panel(sentinels_coloured(example.prompt), title=f"held-out example {number}"))
        if run.model.family == "encoder_decoder" and SENTINEL.search(example.prompt):
            console.print(_span_table(example))
        else:
            console.print(Text.assemble(("model  ", "bold"), example.output))
            console.print(Text.assemble(("truth  ", "bold"), example.truth))


def sentinels_coloured(text: str) -> Text:
    drawn = Text(text)
    drawn.highlight_regex(SENTINEL, "bold magenta")
    return drawn


def _span_table(example: Filled) -> Table:
    """The model's fill beside the truth, a row a span."""
    table = Table("span", Column("model", overflow="fold"), Column("truth", overflow="fold"), box=None)
    said = _spans(example.output)
    for sentinel, truth in _spans(example.truth).items():
        fill = said.get(sentinel)
        style = "green" if fill == truth else None
        table.add_row(
            Text(sentinel, "magenta"),
            Text("(none)" if fill is None else _spelled(fill)),
            Text(_spelled(truth)),
            style=style,
        )
    return table


def _spelled(span: str) -> str:
    """In quotes, on one line where there is room: Rich breaks lines at spaces, of which code has many."""
    return repr(span).replace(" ", "\N{NO-BREAK SPACE}")


def _spans(text: str) -> dict[str, str]:
    """The text after each sentinel.

    >>> _spans("<extra_id_0>ab<extra_id_1>c")
    {'<extra_id_0>': 'ab', '<extra_id_1>': 'c'}
    """
    spans: dict[str, str] = {}
    for sentinel, piece in zip(SENTINEL.findall(text), SENTINEL.split(text)[1:], strict=True):
        spans.setdefault(sentinel, piece)
    return spans
