"""pretrain inspect"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.cli import options

if TYPE_CHECKING:
    import numpy as np
    import seqio
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pretrain.inspection import Example, Inspection, Lines
    from pretrain.run import RunConfig

STYLES = {"text": "", "sentinel": "bold magenta", "special": "dim"}
NO_LOSS, NO_LOSS_STYLE = ("⟦", "⟧"), "blue"


@click.command("inspect", context_settings=options.GIN_CONTEXT)
@click.argument("source", metavar="RUN.gin|MODEL_DIR")
@click.option("--split", help="Split to read.  [default: the run's train_split]")
@click.option(
    "--examples", type=click.IntRange(min=0), default=4, show_default=True, help="How many to show."
)
@click.option(
    "--batches", type=click.IntRange(min=1), default=20, show_default=True, help="How many to count."
)
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a page too, which shows the same in colour, and attention masks and lengths as pictures.",
)  # fmt: skip
@options.gin_arguments
def command(
    source: str, split: str | None, examples: int, batches: int, page: Path | None, gin_flags: tuple[str, ...]
) -> None:
    """Show the first examples a run feeds its model, and figures of its rows and its corpus.

    \b
    Example:
      pretrain inspect runs/quickstart.gin --examples 2 --gin.pack=True
      pretrain inspect runs/quickstart.gin --html quickstart.html
    """
    options.quiet_logs()
    from rich.console import Console

    from pretrain import inspection, inspection_page

    if page is not None:
        inspection_page.check(page)
    run = options.run_of(source, gin_flags)
    found = inspection.inspect(run, split, batches)
    console = Console(highlight=False)
    if examples:
        _show_examples(console, found, run, examples)
    console.print(f"\n[bold]rows[/]: {inspection.rows_line(run, found)}")
    console.print(_table(inspection.rows_lines(found)))
    console.print(f"\n[bold]corpus[/]: {inspection.CORPUS_LINE}")
    console.print(_table(inspection.corpus_lines(found)))
    if page is not None:
        inspection_page.write(page, inspection_page.page(run, found, source, gin_flags, examples))
        console.print(f"\nwrote {page}", markup=False, soft_wrap=True)


def _show_examples(console: "Console", found: "Inspection", run: "RunConfig", wanted: int) -> None:
    start, end = NO_LOSS
    console.print(
        f"[{STYLES['sentinel']}]<extra_id_N>[/] sentinel, [{STYLES['special']}]</s>[/] end, ↵ newline, "
        f"[{NO_LOSS_STYLE}]{start} {end}[/] no loss"
    )
    for number, row in enumerate(found.rows):
        for index, example in enumerate(row):
            if not wanted:
                return
            wanted -= 1
            padding = {
                name: length - sum(len(other[name]) for other in row)
                for name, length in run.lengths_of(int(example["part"])).items()
                if index + 1 == len(row) and name in example
            }
            console.rule(f"row {number}, example {index + 1} of {len(row)}", align="left")
            console.print(_example_table(example, padding, run.vocabulary()))


def _example_table(example: "Example", padding: dict[str, int], vocabulary: "seqio.Vocabulary") -> "Table":
    """Inputs, if there are any, then targets, and the `padding` of the row that follows them."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("inputs", "targets"):
        if name not in example:
            continue
        weights = example["weights"] if name == "targets" else None
        text = decoded(example[name], weights, vocabulary)
        if padding.get(name):
            text.append(f"<pad> x {padding[name]}", STYLES["special"])
        table.add_row(f"[bold]{name}[/]\n[dim]{len(example[name])} tokens[/]", text)
    return table


def decoded(ids: "np.ndarray", weights: "np.ndarray | None", vocabulary: "seqio.Vocabulary") -> "Text":
    """Ids [n] as coloured text; targets that carry no loss, by `weights` [n], are in brackets."""
    import numpy as np
    from rich.text import Text

    from pretrain import inspection
    from pretrain.data.vocabulary import pieces

    carries = np.ones(len(ids), bool) if weights is None else weights > 0
    text = Text()
    for stretch in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(carries)) + 1):
        silent = not carries[stretch].all()
        text.append(NO_LOSS[0] if silent else "", NO_LOSS_STYLE)
        for piece in pieces(ids[stretch], vocabulary):
            style = STYLES[piece.kind] or (NO_LOSS_STYLE if silent else "")
            text.append(inspection.visible(piece.text), style)
        text.append(NO_LOSS[1] if silent else "", NO_LOSS_STYLE)
    return text


def _table(lines: "Lines") -> "Table":
    """The first of the lines names the columns."""
    from rich.table import Table

    (first, *others), *rest = lines
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    for cells in rest:
        table.add_row(*cells)
    return table
