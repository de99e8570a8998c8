"""What a run feeds its model, as a page: one file that needs no other, no script and no network."""

import dataclasses
import inspect
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import seqio

from pretrain import inspection, pictures
from pretrain.data import rows
from pretrain.data import vocabulary as vocabularies
from pretrain.errors import InputError
from pretrain.inspection import Example, Inspection, Lines, Row
from pretrain.models.config import ModelConfig
from pretrain.objectives.base import Objective, Part
from pretrain.pipeline import Batch
from pretrain.run import RunConfig

_LONGEST = 2048  # positions of a row whose masks are drawn


class Mark(NamedTuple):
    """How tokens are drawn: a class of the style sheet, the hue of some, and a number that follows."""

    kind: str = ""
    hue: int | None = None
    number: int | None = None


class Column(NamedTuple):
    """One side of an example: int [n] ids, and a mark for each."""

    title: str
    ids: np.ndarray
    marks: Sequence[Mark]


_PLAIN, _SILENT = Mark(), Mark("silent")
_LEGEND = {
    "sentinel": "sentinel",
    "span": "its tokens, in its colour",
    "masked": "predicted, the mask in its place",
    "random": "predicted, another token in its place",
    "kept": "predicted, and left as it is",
    "ordered": "predicted, and when",
    "silent": "no loss",
    "special": "end, padding and the like",
}


def check(path: Path) -> None:
    """Raises InputError if no page can be written there: better now than when all is read."""
    try:
        taken = path.exists() and not path.is_file()
        _partial(path).exists()
    except OSError as error:
        raise InputError(f"--html {path} is no name for a file ({error.strerror}): give another.") from error
    if taken:
        raise InputError(f"--html {path} is not a file: give the name of a file to write the page to.")
    if not path.parent.is_dir():
        raise InputError(f"--html {path}: there is no directory {path.parent}, make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"--html {path}: {path.parent} cannot be written to, choose another directory.")


def write(path: Path, text: str) -> None:
    """All of the page or nothing: a reader never finds a part of it. Raises InputError."""
    check(path)
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"--html {path} could not be written ({error.strerror}): make room, or choose another place."
        ) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def page(run: RunConfig, found: Inspection, source: str, flags: Sequence[str] = (), examples: int = 4) -> str:
    """The page.

    Args:
        source, flags: what names the run, and what has been changed of it, to be shown.
        examples: how many to show of each part of the objective.
    """
    parts = [
        f"<h1>{escape(source)}</h1>",
        *(f"<p class=flag>{escape(flag)}</p>" for flag in flags),
        _pairs([(name, value, False) for name, value in _facts(run, found)]),
        _mixture(run.objective),
        *(_section(run, found, number, part, examples) for number, part in enumerate(run.objective.parts)),
        f"<h2>Rows</h2><p>{escape(inspection.rows_line(run, found))}</p>",
        _table(inspection.rows_lines(found)),
        f"<h2>Corpus</h2><p>{escape(inspection.CORPUS_LINE)}</p>",
        _table(inspection.corpus_lines(found)),
    ]
    body = "\n".join(parts)
    return _PAGE.format(title=escape(source), style=_STYLE, body=body)


def _facts(run: RunConfig, found: Inspection) -> list[tuple[str, str]]:
    vocabulary = run.vocabulary()
    kind, sentinels = type(vocabulary).__name__, vocabularies.num_sentinels(vocabulary)
    return [
        ("split", found.split),
        ("task", ", ".join(dict.fromkeys(task.name for task in run.tasks()))),
        ("model", run.model.family.replace("_", " ")),
        ("lengths", ", ".join(f"{name} {length:,}" for name, length in run.lengths.items())),
        ("batch", f"{run.batch_size:,} rows, " + ("packed" if run.pack else "not packed")),
        ("vocabulary", f"{kind}, {vocabulary.vocab_size:,} ids, {sentinels} of them sentinels"),
    ]


def _mixture(objective: Objective) -> str:
    """What is said of several parts together."""
    if len(objective.parts) == 1:
        return ""
    said = f"{objective.name} of {len(objective.parts)} parts"
    return f"<h2>{escape(said)}</h2>{_pairs(settings(objective))}"


def _section(run: RunConfig, found: Inspection, number: int, part: Part, examples: int) -> str:
    """A part of the objective: its settings, its examples, what its rows may look at, their figures."""
    own = [index for index, row in enumerate(found.rows) if row[0]["part"] == number]
    said = inspect.getdoc(type(part.objective)) or ""
    html = [f"<h2>{escape(part.called)}</h2>", f"<p>{escape(said.splitlines()[0] if said else '')}</p>"]
    if len(run.objective.parts) > 1:
        share = f"rate {part.rate}, weight {part.weight:g}: {len(own):,} of the {len(found.rows):,} rows read"
        html.append(f"<p>{escape(share)}</p>")
    html.append(_pairs(settings(part.objective)))
    if not own:
        return "\n".join([*html, "<p>No row of this part has been read: give more --batches.</p>"])
    html.append(_examples(run, found, own, part, examples))
    if run.model.masks:
        html += ["<h3>Attention</h3>", _attention(run.model, found, own)]
    lengths = run.lengths_of(number)
    html += ["<h3>Lengths</h3>", _lengths([found.rows[index] for index in own], lengths, run.pack)]
    return "\n".join(html)


def settings(objective: Objective) -> list[tuple[str, str, bool]]:
    """(name, value, whether it is another than the default) of each field, but for the parts of a mixture."""
    found = []
    for field in (field for field in dataclasses.fields(objective) if field.name != "parts"):
        value: Any = getattr(objective, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        found.append((field.name, repr(value), value != default))
    return found


def _examples(run: RunConfig, found: Inspection, own: Sequence[int], part: Part, wanted: int) -> str:
    html = []
    vocabulary, mask = run.vocabulary(), getattr(part.objective, "mask_id", None)
    places = ((index, place) for index in own for place in range(len(found.rows[index])))
    for index, place in itertools.islice(places, wanted):
        row = found.rows[index]
        html.append(f"<h4>row {index}, example {place + 1} of {len(row)}</h4><div class=example>")
        for column in columns(row[place], found.cells[index], vocabulary, mask):
            text = spelled(column.ids, column.marks, vocabulary)
            html.append(
                f"<section><h5>{column.title} <small>{len(column.ids):,} tokens</small></h5>"
                f"<div class=text dir=auto>{text}</div></section>"
            )
        html.append("</div>")
    body = "\n".join(html)
    items = "".join(
        f"<li>{_tagged(Mark(kind, number=0 if kind == 'ordered' else None), said)}</li>"
        for kind, said in _LEGEND.items()
        if re.search(rf'<mark class="[^"]*\b{kind}\b', body)
    )
    legend = f"<ul class=legend>{items}</ul>" if items else ""
    return f"<h3>Examples</h3>{legend}{body}" if html else ""


def columns(
    example: Example, cells: Batch, vocabulary: seqio.Vocabulary, mask: int | None = None
) -> list[Column]:
    """What an example's tokens are to its model, told by its arrays alone: what is hidden, and where it is.

    A sentinel and the tokens that stand for it have one hue. A decoder's prefix is a column of its own.

    mask: the id that hides a token, where that is no sentinel.
    """
    ids, silent = example["targets"], example["weights"] <= 0
    if not rows.predicts(cells):
        left, right = example["inputs"], ids
        return [
            Column("left", left, _hued(left, vocabulary, ())),
            Column("right", right, _hued(right, vocabulary, ())),
        ]
    if rows.side(cells) == "encoder":  # each target stands in the place of its input
        marks = _in_place(example, vocabulary, mask)
        targets = [_SILENT if not_charged else mark for mark, not_charged in zip(marks, silent, strict=True)]
        return [Column("inputs", example["inputs"], marks), Column("targets", ids, targets)]
    if "inputs" in example:
        read, said, name, otherwise = example["inputs"], ids, "inputs", _PLAIN
    else:
        start = len(ids) if silent.all() else int(np.argmin(silent))
        read, said, name, otherwise, silent = ids[:start], ids[start:], "prefix", _SILENT, silent[start:]
    if not len(read):
        return [Column("targets", said, _hued(said, vocabulary, said, silent))]
    return [
        Column(name, read, _hued(read, vocabulary, (), otherwise=otherwise)),
        Column("targets", said, _hued(said, vocabulary, read, silent)),
    ]


def _hued(
    ids: np.ndarray, vocabulary: seqio.Vocabulary, stands_for: Sequence[int] | np.ndarray,
    silent: np.ndarray | None = None, otherwise: Mark = _PLAIN,
) -> list[Mark]:  # fmt: skip
    """Sentinels, each with a hue of its own, and what follows those that `stands_for` has too."""
    asked = {int(token) for token in stands_for}
    marks, following = [], otherwise
    for place, token in enumerate(ids.tolist()):
        kind = _kind(token, vocabulary)
        if kind == "sentinel":
            hue = int((vocabulary.vocab_size - 1 - token) * 137.5 + 210) % 360  # neighbours far apart
            following = Mark("span", hue) if token in asked else otherwise
            marks.append(Mark("sentinel", hue))
        elif kind == "special" or (silent is not None and silent[place]):
            marks.append(_PLAIN if kind == "special" else _SILENT)
        else:
            marks.append(following)
    return marks


def _in_place(example: Example, vocabulary: seqio.Vocabulary, mask: int | None) -> list[Mark]:
    """What has become of each token that is predicted: hidden, another one, itself; or when it is."""
    if "order" in example:
        order = example["order"].tolist()
        last = max(*order, 1)
        return [_PLAIN if n < 0 else Mark("ordered", 170 + 150 * n // last, n) for n in order]
    marks = []
    for token, target, weight in zip(*(example[n] for n in ("inputs", "targets", "weights")), strict=True):
        hidden = token == mask or _kind(int(token), vocabulary) != "text"
        kind = "masked" if hidden else "kept" if token == target else "random"
        marks.append(Mark(kind) if weight > 0 else _PLAIN)
    return marks


def _kind(token: int, vocabulary: seqio.Vocabulary) -> vocabularies.Kind:
    return vocabularies.pieces([token], vocabulary)[0].kind


def spelled(ids: np.ndarray, marks: Sequence[Mark], vocabulary: seqio.Vocabulary) -> str:
    """Ids [n] as text in HTML, each stretch of one mark in a tag of its own."""
    html = []
    for mark, group in itertools.groupby(zip(ids, marks, strict=True), key=lambda pair: pair[1]):
        for piece in vocabularies.pieces([int(token) for token, _ in group], vocabulary):
            kind = f"{mark.kind} special".strip() if piece.kind == "special" else mark.kind
            html.append(_tagged(mark._replace(kind=kind), inspection.visible(piece.text)))
    return "".join(html)


def _tagged(mark: Mark, text: str) -> str:
    if not mark.kind:
        return escape(text)
    number = "" if mark.number is None else f"<sub>{mark.number}</sub>"
    end = "\n" if text.endswith("\n") else ""  # the number stands before it, on the same line
    hue = "" if mark.hue is None else f' style="--h:{mark.hue}"'
    return f'<mark class="{mark.kind}"{hue}>{escape(text.removesuffix(end))}{number}{end}</mark>'


def _attention(model: ModelConfig, found: Inspection, own: Sequence[int]) -> str:
    """Of the first row that holds several examples, or else of the first."""
    index = next((index for index in own if len(found.rows[index]) > 1), own[0])
    figures = []
    for name, (seen, queries, keys) in masks(model, found.cells[index]).items():
        said = f"<b>{escape(name)}</b>: {len(queries):,} queries down, {len(keys):,} keys across"
        if (every := pictures.every(seen.shape)) > 1:
            said += f"; one position of {every} is drawn"
        figures.append(_figure(pictures.grid(seen, queries, keys), said))
    longest = max(cells.shape[1] for cells in found.cells[index].values())
    cut = f" Only the first {_LONGEST:,} of {longest:,} positions are drawn." if longest > _LONGEST else ""
    return (
        f"<p>Row {index}, as the model's own masks have it: coloured where a query sees a key, a colour for "
        f"each example, grey for padding.{cut}</p><div class=figures>{''.join(figures)}</div>"
    )


def masks(model: ModelConfig, cells: Batch) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What the model lets see what in one row, by name: bool [Q, K], and the segments of queries and keys."""
    batch = {name: jax.numpy.asarray(value[:1, :_LONGEST]) for name, value in cells.items()}
    drawn = {}
    for name, mask_of in model.masks_of(batch).items():
        mask = mask_of(batch)
        seen, queries, keys = mask.written_out(), mask.query_segments, mask.key_segments
        drawn[name] = (np.asarray(seen[0]), np.asarray(queries[0]), np.asarray(keys[0]))
    return drawn


def _lengths(found: Sequence[Row], lengths: Mapping[str, int], pack: bool) -> str:
    figures = []
    for name, stats in inspection.feature_stats(found, lengths).items():
        fill = [100 * sum(len(example[name]) for example in row) // stats.row_length for row in found]
        figures += [
            _histogram(f"{name}: tokens of an example", stats.lengths, stats.row_length, "examples"),
            _histogram(f"{name}: share of a row that is filled", fill, 100, "rows", "%"),
        ]
    if pack:
        held = [len(row) for row in found]
        figures.append(_histogram("examples in a row", held, max(*held, 10), "rows"))
    return f"<div class='figures lengths'>{''.join(figures)}</div>"


def _histogram(title: str, values: Sequence[int] | np.ndarray, most: int, of: str, unit: str = "") -> str:
    drawn = pictures.histogram(values, most, of, unit)
    figures = f"{min(values):,}{unit}, median {np.median(values):,.0f}{unit}, most {max(values):,}{unit}"
    return _figure(drawn, f"<b>{escape(title)}</b><br>{len(values):,} {of}: least {figures}")


def _figure(drawn: str, said: str) -> str:
    return f"<figure>{drawn}<figcaption>{said}</figcaption></figure>"


def _pairs(pairs: Sequence[tuple[str, str, bool]]) -> str:
    """Names and values; those that are marked stand out."""
    items = (
        f"<div{' class=changed' if changed else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value, changed in pairs
    )
    return f"<dl>{''.join(items)}</dl>"


def _table(lines: Lines) -> str:
    """The first of the lines names the columns."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(cells, "td") for cells in lines[1:])
    return f"<div class=wide><table>{line(lines[0], 'th')}{body}</table></div>"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b222c; --dim: #5c6572; --paper: #fff; --card: #f5f6f8;
  --line: #d5dae1; --bar: #3e74c8; --cut: #8b94a1; --back: 86%; --strong: 72%; --sat: 75%; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --dim: #98a2b0; --paper: #14181e;
  --card: #1d232b; --line: #353e4a; --bar: #6a9be0; --cut: #6d7786; --back: 25%; --strong: 33%;
  --sat: 45%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1, h2, h3, h4, h5, p { margin: 0 0 .5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; }
h1, .flag { font-family: ui-monospace, monospace; }
.flag { margin: 0 0 .3rem; color: var(--dim); font-size: .9rem; }
h2 { margin-top: 2.2rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { margin-top: 1.4rem; }
h4 { margin-top: 1rem; font-weight: normal; color: var(--dim); }
h5 { font-size: 1rem; }
small, figcaption, dt { color: var(--dim); font-weight: normal; }
dl { display: flex; flex-wrap: wrap; gap: .4rem; margin: .6rem 0 1rem; }
dd { margin: 0; }
dl div { padding: .1rem .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 4px;
  max-width: 100%; }
dl .changed { border-color: var(--bar); }
dt { margin-right: .4em; }
dt, dd { display: inline; overflow-wrap: anywhere; }
.changed dd { font-weight: 600; }
.example { display: flex; flex-wrap: wrap; gap: 1rem; }
.example section { flex: 1 1 20rem; min-width: 0; }
.text { padding: .5rem .7rem; max-height: 26rem; overflow: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.65 ui-monospace, monospace; }
mark { background: none; color: inherit; }
.sentinel, .span, .masked, .random, .kept, .ordered { --h: 210; border-radius: 3px; padding: 1px 0;
  background: hsl(var(--h) var(--sat) var(--back)); box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.sentinel { font-weight: 600; background: hsl(var(--h) var(--sat) var(--strong)); }
.masked { --h: 275; }
.random { --h: 25; text-decoration: underline wavy; }
.kept { --h: 145; text-decoration: underline dotted; }
.ordered { padding: 1px; margin-right: 1px; }
.silent, .special { color: var(--dim); }
.special { font-style: italic; }
sub { font-size: .7em; margin-left: 1px; color: var(--dim); vertical-align: sub; line-height: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.legend mark { padding: 1px 5px; }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.lengths { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 285px), 1fr)); }
figure { margin: 0; max-width: 100%; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg image { image-rendering: pixelated; }
.bar { fill: var(--bar); }
.axis { stroke: var(--cut); }
.grid { stroke: var(--line); stroke-dasharray: 3 3; }
.sheet { fill: var(--card); stroke: var(--line); }
.cut { stroke: var(--cut); stroke-width: .5; stroke-dasharray: 2 3; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; white-space: pre;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--dim); font-weight: normal; border-bottom: 1px solid var(--line); }
"""
