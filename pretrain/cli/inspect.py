"""pretrain inspect"""

from typing import TYPE_CHECKING

import click

from pretrain.cli import options

if TYPE_CHECKING:
    import numpy as np
    import seqio
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pretrain.inspection import Example, Inspection

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
@options.gin_arguments
def command(source: str, split: str | None, examples: int, batches: int, gin_flags: tuple[str, ...]) -> None:
    """Show the first examples a run feeds its model, and figures of its rows and its corpus.

    \b
    Example:
      pretrain inspect runs/quickstart.gin --examples 2 --gin.pack=True
    """
    options.quiet_logs()
    from rich.console import Console

    from pretrain import inspection

    run = options.run_of(source, gin_flags)
    found = inspection.inspect(run, split, batches)
    console = Console(highlight=False)
    if examples:
        _show_examples(console, found, run.vocabulary(), examples)
    packed = "packed" if run.pack else "not packed"
    console.print(
        f"\n[bold]rows[/]: {found.batches:,} batches of {run.batch_size}, split {found.split!r}, {packed}"
    )
    console.print(_rows_table(found))
    console.print("\n[bold]corpus[/]: the documents read so far, before the objective cuts them")
    console.print(_corpus_table(found))


def _show_examples(
    console: "Console", found: "Inspection", vocabulary: "seqio.Vocabulary", wanted: int
) -> None:
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
                name: stats.row_length - sum(len(other[name]) for other in row)
                for name, stats in found.features.items()
                if index + 1 == len(row)
            }
            console.rule(f"row {number}, example {index + 1} of {len(row)}", align="left")
            console.print(_example_table(example, padding, vocabulary))


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


def _rows_table(found: "Inspection") -> "Table":
    """A column for each feature."""
    import numpy as np

    table, made = _table(("", *found.features)), found.truncation
    shown = list(found.features.items())
    lines = [
        ("row length", *(f"{stats.row_length:,}" for _, stats in shown)),
        ("tokens a row", *(f"{stats.tokens / stats.rows:,.1f}" for _, stats in shown)),
        ("padding", *(f"{stats.padding:.1%}" for _, stats in shown)),
        ("tokens with loss", *("" if s.weight is None else f"{s.weight / s.tokens:.1%}" for _, s in shown)),
        ("examples", *(f"{len(stats.lengths):,}" for _, stats in shown)),
        ("examples a row", *(f"{len(stats.lengths) / stats.rows:.2f}" for _, stats in shown)),
        ("tokens an example: least", *(f"{stats.lengths.min():,}" for _, stats in shown)),
        ("    median", *(f"{np.median(stats.lengths):,.0f}" for _, stats in shown)),
        ("    mean", *(f"{stats.lengths.mean():,.1f}" for _, stats in shown)),
        ("    most", *(f"{stats.lengths.max():,}" for _, stats in shown)),
        ("examples that just fill a row", *(f"{stats.full:,}" for _, stats in shown)),
    ]
    if made is not None:
        lines += [
            (f"truncated, of {made.examples:,} made so far", *(f"{made.cut[name]:,}" for name, _ in shown)),
            ("tokens lost to that", *(f"{made.lost[name]:,}" for name, _ in shown)),
        ]
    for name, *cells in lines:
        table.add_row(name, *cells)
    return table


def _corpus_table(found: "Inspection") -> "Table":
    """A row for each task."""
    import numpy as np

    row = sum(stats.row_length for stats in found.features.values())
    longer = f"over {row:,} tokens"
    table = _table(("", "documents", "mean tokens", "median", "mean bytes", "bytes a token", longer))
    for corpus in found.corpora:
        tokens, spelled = corpus.tokens, corpus.bytes
        table.add_row(
            corpus.task,
            f"{len(tokens):,}" + (" (all)" if corpus.whole else ""),
            f"{tokens.mean():,.0f}",
            f"{np.median(tokens):,.0f}",
            f"{spelled.mean():,.0f}",
            f"{spelled.sum() / max(tokens.sum(), 1):.2f}",
            f"{(tokens > row).mean():.0%}",
        )
    return table


def _table(columns: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table
