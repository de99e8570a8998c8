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

    from pretrain.inspection import Inspection

LABELS = {"encoder": "inputs", "decoder": "targets"}
STYLES = {"text": "", "sentinel": "bold magenta", "special": "dim"}
NO_LOSS = ("⟦", "⟧")


@click.command("inspect", context_settings=options.GIN_CONTEXT)
@click.argument("run_file", metavar="RUN.gin")
@click.option("--split", help="Split to read; the one the run trains on unless given.")
@click.option(
    "--examples", type=click.IntRange(min=0), default=4, show_default=True, help="Examples to show."
)
@click.option(
    "--batches", type=click.IntRange(min=1), default=20, show_default=True, help="Batches to count."
)
@options.gin_arguments
def command(
    run_file: str, split: str | None, examples: int, batches: int, gin_flags: tuple[str, ...]
) -> None:
    """Show the first examples that RUN.gin (or a model dir) feeds its model, and figures of its rows.

    \b
    Example:
      pretrain inspect runs/quickstart.gin --examples 2 --gin.pack=True
    """
    from rich.console import Console

    options.quiet_logs()
    from pretrain import config, inspection

    if Path(run_file).is_dir():
        run = options.model_dir_run(Path(run_file), gin_flags)
    else:
        run = config.load(run_file, options.bindings(gin_flags))
    found = inspection.inspect(run, split, batches)
    console = Console()
    if examples:
        _show_examples(console, found, run.vocabulary(), examples)
    packed = "packed" if run.pack else "not packed"
    console.print(
        f"\n[bold]rows[/]: {len(found.batches):,} batches of {run.batch_size}, split {found.split!r}, {packed}"
    )
    console.print(_rows_table(found))
    console.print("\n[bold]corpus[/]: the documents read so far, before the objective cuts them")
    console.print(_corpus_table(found, sum(run.lengths.values())))


def _show_examples(
    console: "Console", found: "Inspection", vocabulary: "seqio.Vocabulary", wanted: int
) -> None:
    from pretrain import inspection

    start, end = NO_LOSS
    console.print(
        f"[bold magenta]<extra_id_N>[/] sentinel  [dim]</s>[/] end  ↵ newline  {start}{end} no loss"
    )
    rows = ((batch, row) for batch in found.batches for row in range(len(next(iter(batch.values())))))
    shown = 0
    for number, (batch, row) in enumerate(rows):
        examples = inspection.row_examples(batch, row)
        padding = {
            part: stats.row_length - sum(len(_tokens(example, part)) for example in examples)
            for part, stats in found.parts.items()
        }
        for index, example in enumerate(examples):
            if shown == wanted:
                return
            shown += 1
            console.rule(f"row {number}, example {index + 1} of {len(examples)}", align="left")
            last = index + 1 == len(examples)
            console.print(_example_table(example, vocabulary, padding if last else {}))


def _example_table(
    example: "dict[str, np.ndarray]", vocabulary: "seqio.Vocabulary", padding: dict[str, int]
) -> "Table":
    """A line for the inputs, then one for the targets; the row's last example ends in the row's padding."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for part in dict.fromkeys(name.partition("_")[0] for name in example):
        ids = _tokens(example, part)
        text = decoded(ids, example.get(f"{part}_loss_weights"), vocabulary)
        if padding.get(part):
            text.append(f"<pad> × {padding[part]}", STYLES["special"])
        table.add_row(f"[bold]{LABELS.get(part, part)}[/]\n[dim]{len(ids)} tokens[/]", text)
    return table


def _tokens(example: "dict[str, np.ndarray]", part: str) -> "np.ndarray":
    """What a part is about: what it predicts, or what it reads where it predicts nothing."""
    targets = f"{part}_target_tokens"
    return example[targets if targets in example else f"{part}_input_tokens"]


def decoded(ids: "np.ndarray", weights: "np.ndarray | None", vocabulary: "seqio.Vocabulary") -> "Text":
    """Ids [n] as coloured text, what carries no loss (by `weights` [n]) in brackets."""
    import numpy as np
    from rich.text import Text

    from pretrain import inspection

    counts = np.ones(len(ids), bool) if weights is None else np.asarray(weights) > 0
    text = Text()
    for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(counts)) + 1):
        marks = ("", "") if counts[part].all() else NO_LOSS
        text.append(marks[0], "blue")
        for piece in inspection.pieces(ids[part], vocabulary):
            style = STYLES[piece.kind] or ("" if counts[part].all() else "blue")
            text.append(inspection.visible(piece.text), style)
        text.append(marks[1], "blue")
    return text


def _rows_table(found: "Inspection") -> "Table":
    """A column for each part of the row."""
    import numpy as np

    table = _table(("", *found.parts))
    parts, made = found.parts.values(), found.truncation
    losses = [
        [f"{counts[name]:,}" if (name := LABELS.get(part, part)) in counts else "" for part in found.parts]
        for counts in (made.cut, made.lost)
    ]
    for name, *cells in (
        ("row length", *(f"{part.row_length:,}" for part in parts)),
        ("tokens a row", *(f"{part.tokens / part.rows:,.1f}" for part in parts)),
        ("padding", *(f"{part.padding:.1%}" for part in parts)),
        ("tokens with loss", *("" if p.weight is None else f"{p.weight / p.tokens:.1%}" for p in parts)),
        ("examples", *(f"{len(part.lengths):,}" for part in parts)),
        ("examples a row", *(f"{len(part.lengths) / part.rows:.2f}" for part in parts)),
        ("tokens an example: least", *(f"{part.lengths.min():,}" for part in parts)),
        ("    median", *(f"{np.median(part.lengths):,.0f}" for part in parts)),
        ("    mean", *(f"{part.lengths.mean():,.1f}" for part in parts)),
        ("    most", *(f"{part.lengths.max():,}" for part in parts)),
        ("examples that just fill a row", *(f"{part.full:,}" for part in parts)),
        (f"truncated, of {made.examples:,} made so far", *losses[0]),
        ("tokens lost to that", *losses[1]),
    ):
        table.add_row(name, *cells)
    return table


def _corpus_table(found: "Inspection", row_length: int) -> "Table":
    """A row for each task. Most documents are longer than a row; that they are cut loses nothing of them."""
    import numpy as np

    longer = f"over {row_length:,} tokens"
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
            f"{(tokens > row_length).mean():.0%}",
        )
    return table


def _table(columns: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table
