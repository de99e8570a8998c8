"""What a run feeds its model: the examples in its rows, ids as text, and figures of rows and corpus."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import seqio
import tensorflow as tf

from pretrain import mixing, pipeline
from pretrain.data import rows
from pretrain.data.vocabulary import token_bytes
from pretrain.errors import InputError
from pretrain.pipeline import Batch
from pretrain.run import RunConfig

Example = Mapping[str, np.ndarray]
Row = Sequence[Example]


@dataclasses.dataclass(frozen=True)
class FeatureStats:
    """What the rows that were read hold of one feature, "inputs" or "targets".

    Attributes:
        row_length: cells in a row.
        rows: how many rows hold an example.
        lengths: int [examples], the tokens of each.
        weight: sum of the loss weights; None for inputs, which have none.
    """

    row_length: int
    rows: int
    lengths: np.ndarray
    weight: float | None

    @property
    def tokens(self) -> int:
        """Cells that hold a token."""
        return int(self.lengths.sum())

    @property
    def padding(self) -> float:
        """Share of the cells that hold none."""
        return 1 - self.tokens / (self.rows * self.row_length)

    @property
    def full(self) -> int:
        """Examples that fill a row to its last cell."""
        return int((self.lengths == self.row_length).sum())


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What SeqIO's trim to the row lengths took from examples that are not made of chunks.

    Attributes:
        examples: how many there were.
        cut: how many lost tokens, by feature.
        lost: how many tokens that was, by feature.
    """

    examples: int
    cut: Mapping[str, int]
    lost: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class CorpusStats:
    """The first documents of a task, in the order the run reads them.

    Attributes:
        task: its name.
        tokens: int [documents].
        bytes: int [documents], of the text that the tokens stand for.
        whole: whether these documents are all of the split.
    """

    task: str
    tokens: np.ndarray
    bytes: np.ndarray
    whole: bool


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found: the examples of each row, figures by feature, and an entry for each task.

    cells: what the model reads of each of `rows`, [1, length] features.
    """

    split: str
    batches: int
    rows: Sequence[Row]
    cells: Sequence[Batch]
    features: Mapping[str, FeatureStats]
    truncation: Truncation | None
    corpora: Sequence[CorpusStats]


def inspect(run: RunConfig, split: str | None = None, num_batches: int = 20) -> Inspection:
    """Reads the first batches of `split`: the one trained on as training does, others as evaluation does.

    So many of each part of a mixture, where an evaluation reads one after the other. Truncation and corpus
    are those of what the pipeline took in to make these batches: the examples in them and those that wait
    in the shuffle buffer. A finite split may have fewer batches than asked for.

    Raises:
        InputError: the run is wrong, or there is no such split, or not one batch in it.
    """
    run.check()
    split = split or run.train_split
    if any(split not in corpus.splits for corpus in run.corpora()):
        raise InputError(
            f"Task {run.corpus().name!r} has no split {split!r}; it has {', '.join(run.corpus().splits)}."
        )
    training = split == run.train_split
    parts = [None] if training else mixing.held_out(run.objective)
    streams = [pipeline.batches(run, split, training=training, part=part) for part in parts]
    batches = [batch for stream in streams for batch in itertools.islice(stream, num_batches)]
    read = [
        (next(iter(rows.by_part(cells).values())), row)
        for batch in batches
        for cells, row in zip(single_rows(batch), row_examples(batch), strict=True)
        if row
    ]
    found = [row for _, row in read]
    features = _features(run, found)
    held = sum(len(row) for row in found)
    examples = held + (run.shuffle_buffer if training else 0)
    tokens = sum(stats.tokens for stats in features.values()) * examples // held
    return Inspection(
        split=split,
        batches=len(batches),
        rows=found,
        cells=[cells for cells, _ in read],
        features=features,
        truncation=truncation(run, split, training=training, examples=examples),
        corpora=corpus_stats(run, split, training=training, tokens=tokens),
    )


def row_examples(batch: Batch) -> list[Row]:
    """The examples of each row of a batch, as `data.rows.examples` has them; none in a row of padding.

    >>> batch = {"decoder_target_tokens": np.array([[5, 1, 6, 1], [7, 1, 0, 0]]),
    ...          "decoder_loss_weights": np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]]),
    ...          "decoder_segment_ids": np.array([[1, 1, 2, 2], [1, 1, 0, 0]])}
    >>> [[example["targets"].tolist() for example in row] for row in row_examples(batch)]
    [[[5, 1], [6, 1]], [[7, 1]]]
    """
    return [list(rows.examples(cells)) for cells in single_rows(batch)]


def single_rows(batch: Batch) -> list[Batch]:
    """A batch of each row of a batch; where each part of a mixture has rows of its own, of each in turn."""
    size = len(next(iter(batch.values())))
    parts = [batch]
    if any("/" in name for name in batch):
        parts = [
            {rows.of_part(number, name): value for name, value in own.items()}
            for number, own in rows.by_part(batch).items()
        ]
    return [
        {name: value[row : row + 1] for name, value in own.items()} for row in range(size) for own in parts
    ]


def _features(run: RunConfig, found: Sequence[Row]) -> dict[str, FeatureStats]:
    """Figures of each feature; where each part of a mixture has rows of its own, of each part's."""
    if mixing.shares(run.objective):
        return feature_stats(found, run.lengths)
    features: dict[str, FeatureStats] = {}
    for number, part in enumerate(run.objective.parts):
        if own := [row for row in found if row[0]["part"] == number]:
            stats = feature_stats(own, run.lengths_of(number))
            features |= {f"{part.called}: {name}": each for name, each in stats.items()}
    return features


def feature_stats(found: Sequence[Row], lengths: Mapping[str, int]) -> dict[str, FeatureStats]:
    """Figures of each feature of at least one row; `lengths` are those of a row.

    An encoder's targets stand in the places of its inputs, and are no cells of their own.
    """
    examples = [example for row in found for example in row]
    side = "targets" if "targets" in lengths else "inputs"
    return {
        name: FeatureStats(
            row_length=lengths[name],
            rows=len(found),
            lengths=np.array([len(example[name]) for example in examples]),
            weight=float(sum(e["weights"].sum() for e in examples)) if name == side else None,
        )
        for name in ("inputs", "targets")
        if name in examples[0] and name in lengths
    }


_ENDLESS = 2**20  # tokens, more than any pair has


def truncation(run: RunConfig, split: str, *, training: bool, examples: int) -> Truncation | None:
    """Reads the first `examples` examples twice, for endless rows and for those of the run.

    None where examples are made of chunks, which are not cut: what does not fit ends the run. None of a
    mixture.
    """
    if len(run.objective.parts) > 1 or run.objective.makes_chunks:
        return None
    bound = run.objective.bind(run.corpus())

    def read(lengths: Mapping[str, int]) -> tf.data.Dataset:
        return bound.get_dataset(
            sequence_length=dict(lengths),
            num_epochs=None if training else 1,
            **_reading(run, bound, split, training),
        )

    cut, lost = dict.fromkeys(bound.output_features, 0), dict.fromkeys(bound.output_features, 0)
    compared = 0
    endless = dict.fromkeys(run.lengths, _ENDLESS)
    both = tf.data.Dataset.zip((read(endless), read(run.lengths)))
    for whole, trimmed in both.take(examples).as_numpy_iterator():
        compared += 1
        for name in cut:
            missing = whole[name].size - trimmed[name].size
            cut[name] += missing > 0
            lost[name] += missing
    return Truncation(compared, cut, lost)


def corpus_stats(run: RunConfig, split: str, *, training: bool, tokens: int) -> list[CorpusStats]:
    """Reads documents of `tokens` tokens, at most the split once; of a mixture's tasks, by their rates."""
    tasks, rates = [task for task in run.tasks() if split in task.splits], [1.0]
    corpus = run.corpus()
    if isinstance(corpus, seqio.Mixture) and len(run.objective.parts) == 1:
        rates = [corpus.get_rate(task) for task in tasks]
    rates = rates * len(tasks) if len(rates) == 1 else rates
    table = token_bytes(run.vocabulary())
    found = []
    for task, rate in zip(tasks, rates, strict=True):
        documents = task.get_dataset(None, num_epochs=1, **_reading(run, task, split, training))
        wanted = int(tokens * rate / sum(rates))
        found.append(_document_stats(task.name, documents.as_numpy_iterator(), table, wanted))
    return found


def _document_stats(
    task: str, documents: Iterator[Example], token_bytes: np.ndarray, wanted: int
) -> CorpusStats:
    tokens: list[int] = []
    spelled: list[int] = []
    for document in documents:
        ids = document["targets"]
        tokens.append(ids.size)
        spelled.append(int(token_bytes[ids].sum()))
        wanted -= ids.size
        if wanted <= 0:
            break
    whole = next(documents, None) is None
    return CorpusStats(task, np.array(tokens, np.int64), np.array(spelled, np.int64), whole)


def _reading(run: RunConfig, task: seqio.Task | seqio.Mixture, split: str, training: bool) -> dict:
    """How the pipeline reads the files; examples keep their order, except that of a mixture's."""
    return {
        "split": split,
        "use_cached": run.use_cached,
        "shuffle": training,
        "seed": run.seed,
        "shard_info": seqio.ShardInfo(index=jax.process_index(), num_shards=jax.process_count()),
        "try_in_mem_cache": False,
        # The files are shuffled all the same, but no buffer has to fill.
        **({"shuffle_buffer_size": 1} if isinstance(task, seqio.Task) else {}),
    }


Lines = list[tuple[str, ...]]


def rows_line(run: RunConfig, found: Inspection) -> str:
    """What the figures of `rows_lines` are of."""
    packed = "packed" if run.pack else "not packed"
    return f"{found.batches:,} batches of {run.batch_size}, split {found.split!r}, {packed}"


def rows_lines(found: Inspection) -> Lines:
    """Figures of the rows, as cells of a table: a column for each feature, and first the names of all."""
    made, shown = found.truncation, list(found.features.items())
    lines = [
        ("", *(name for name, _ in shown)),
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
    return lines


CORPUS_LINE = "the documents read so far, before the objective cuts them"


def corpus_lines(found: Inspection) -> Lines:
    """Figures of the corpus, as cells of a table: a row for each task, and first the names of the columns."""
    row = sum(stats.row_length for stats in found.features.values())
    longer = f"over {row:,} tokens"
    lines: Lines = [("", "documents", "mean tokens", "median", "mean bytes", "bytes a token", longer)]
    for corpus in found.corpora:
        tokens, spelled = corpus.tokens, corpus.bytes
        cells = (
            corpus.task,
            f"{len(tokens):,}" + (" (all)" if corpus.whole else ""),
            f"{tokens.mean():,.0f}",
            f"{np.median(tokens):,.0f}",
            f"{spelled.mean():,.0f}",
            f"{spelled.sum() / max(tokens.sum(), 1):.2f}",
            f"{(tokens > row).mean():.0%}",
        )
        lines.append(cells)
    return lines


def visible(text: str) -> str:
    """`text` with what a terminal would act on or hide made visible; a newline also stays one.

    >>> visible("a\\tb\\n\\x00\\x1b\\u202e")
    'a⇥b↵\\n␀␛\\\\u202e'
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    known = {"\n": "↵\n", "\t": "⇥", "\x7f": "␡"}
    if character in known:
        return known[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    return character if character.isprintable() else character.encode("unicode_escape").decode()
