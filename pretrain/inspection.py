"""What a run feeds its model: rows cut back into examples, ids as text, and figures of rows and corpus."""

import dataclasses
import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
import seqio
import tensorflow as tf

from pretrain import pipeline
from pretrain.data.vocabulary import num_sentinels, token_bytes
from pretrain.errors import InputError
from pretrain.pipeline import Batch
from pretrain.run import RunConfig

Kind = Literal["text", "sentinel", "special"]

_SEGMENTS = "_segment_ids"
_SPACE = "\u2581"  # SentencePiece writes a space as this


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of ids as text. Kinds: text, one sentinel, or one special id such as EOS or padding."""

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True)
class PartStats:
    """One part of the rows that were read, the encoder's or the decoder's.

    row_length: cells in a row; rows: rows that hold an example.
    lengths: int [examples], tokens of each example in this part.
    weight: sum of the loss weights; None where the part has none.
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
        """Examples that fill the row to the last cell."""
        return int((self.lengths == self.row_length).sum())


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What SeqIO's trim to the row lengths took from `examples` examples.

    cut: examples that lost tokens, and lost: the tokens, each by task feature.
    """

    examples: int
    cut: Mapping[str, int]
    lost: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class CorpusStats:
    """The first documents of a task, in the order the run reads them.

    tokens, bytes: int [documents]; whole: whether these are all of the split.
    """

    task: str
    tokens: np.ndarray
    bytes: np.ndarray
    whole: bool


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `parts` is keyed by "encoder" and "decoder", `corpora` has one entry a task."""

    split: str
    batches: Sequence[Batch]
    parts: Mapping[str, PartStats]
    truncation: Truncation
    corpora: Sequence[CorpusStats]


def inspect(run: RunConfig, split: str | None = None, num_batches: int = 20) -> Inspection:
    """Reads the first batches of a split as the run does: shuffled for training, else as evaluation reads it.

    Truncation and corpus are those of what the pipeline took in to fill these batches: the examples in
    them and those that wait in the shuffle buffer. A finite split may have fewer batches than asked for.

    Raises:
        InputError: the run, or the split, is not one that could be read.
    """
    run.check()
    split = split or run.train_split
    if split not in run.corpus().splits:
        raise InputError(
            f"Task {run.corpus().name!r} has no split {split!r}; it has {', '.join(run.corpus().splits)}."
        )
    training = split == run.train_split
    stream = pipeline.batches(run, split, training=training)
    batches = list(itertools.islice(stream, num_batches))
    parts = part_stats(batches)
    held = max(len(part.lengths) for part in parts.values())
    examples = held + (run.shuffle_buffer if training else 0)
    tokens = sum(part.tokens for part in parts.values()) * examples // held
    return Inspection(
        split=split,
        batches=batches,
        parts=parts,
        truncation=truncation(run, split, training=training, examples=examples),
        corpora=corpus_stats(run, split, training=training, tokens=tokens),
    )


def row_examples(batch: Batch, row: int) -> list[dict[str, np.ndarray]]:
    """The examples in a row, padded or packed, in the order of their segment ids.

    Args:
        batch: features [rows, length]; those of a part, such as "decoder_*", are cut by its
            "decoder_segment_ids".
        row: which row.

    Returns:
        For each segment id that the row holds, every feature of its parts but the segment ids themselves,
        [tokens of the example in that part].

    >>> batch = {"decoder_target_tokens": np.array([[5, 6, 1, 7, 1, 0]]),
    ...          "decoder_segment_ids": np.array([[1, 1, 1, 2, 2, 0]])}
    >>> [{name: ids.tolist() for name, ids in example.items()} for example in row_examples(batch, 0)]
    [{'decoder_target_tokens': [5, 6, 1]}, {'decoder_target_tokens': [7, 1]}]
    """
    features = [
        (name, np.asarray(batch[name])[row], np.asarray(batch[part + _SEGMENTS])[row])
        for part in part_names(batch)
        for name in batch
        if name.startswith(f"{part}_") and not name.endswith(_SEGMENTS)
    ]
    segments = {int(segment) for _, _, ids in features for segment in ids} - {0}
    return [{name: values[ids == segment] for name, values, ids in features} for segment in sorted(segments)]


def part_names(batch: Batch) -> list[str]:
    """The parts of a row that have segment ids, such as ["encoder", "decoder"]: encoders first."""
    names = [name.removesuffix(_SEGMENTS) for name in batch if name.endswith(_SEGMENTS)]
    return sorted(names, key=lambda name: (not name.startswith("encoder"), name))


def part_stats(batches: Sequence[Batch]) -> dict[str, PartStats]:
    """Figures of each part over all rows that hold an example (the last batch of a split has others)."""
    names = part_names(batches[0])
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in names}
    weights: dict[str, float] = {}
    rows = 0
    for batch in batches:
        segments = {name: np.asarray(batch[name + _SEGMENTS]) for name in names}
        for row in zip(*segments.values(), strict=True):
            examples = max(int(ids.max()) for ids in row)
            rows += examples > 0
            for name, ids in zip(names, row, strict=True):
                lengths[name].append(np.bincount(ids, minlength=examples + 1)[1:])
        for name in names:
            if (weight := batch.get(f"{name}_loss_weights")) is not None:
                weights[name] = weights.get(name, 0.0) + float(np.sum(weight))
    return {
        name: PartStats(
            row_length=batches[0][name + _SEGMENTS].shape[1],
            rows=rows,
            lengths=np.concatenate(lengths[name]),
            weight=weights.get(name),
        )
        for name in names
    }


def truncation(run: RunConfig, split: str, *, training: bool, examples: int) -> Truncation:
    """Reads the first `examples` examples the objective makes twice, whole and trimmed, and compares them."""
    bound = run.objective.bind(run.corpus())

    def read(trim: bool) -> tf.data.Dataset:
        return bound.get_dataset(
            sequence_length=dict(run.lengths),
            num_epochs=None if training else 1,
            trim_output_features=trim,
            **_reading(run, bound, split, training),
        )

    cut = dict.fromkeys(bound.output_features, 0)
    lost = dict(cut)
    seen = 0
    for whole, trimmed in tf.data.Dataset.zip((read(False), read(True))).take(examples).as_numpy_iterator():
        seen += 1
        for name in cut:
            missing = whole[name].size - trimmed[name].size
            cut[name] += missing > 0
            lost[name] += missing
    return Truncation(seen, cut, lost)


def corpus_stats(run: RunConfig, split: str, *, training: bool, tokens: int) -> list[CorpusStats]:
    """Reads about `tokens` tokens of documents, at most the split once; a mixture's tasks by their rates."""
    corpus = run.corpus()
    tasks, rates = [corpus], [1.0]
    if isinstance(corpus, seqio.Mixture):
        tasks = [task for task in corpus.tasks if split in task.splits]
        rates = [corpus.get_rate(task) for task in tasks]
    table = token_bytes(run.vocabulary())
    return [
        _task_stats(
            task.name,
            task.get_dataset(None, num_epochs=1, **_reading(run, task, split, training)).as_numpy_iterator(),
            table,
            int(tokens * rate / sum(rates)),
        )
        for task, rate in zip(tasks, rates, strict=True)
    ]


def _task_stats(
    name: str, documents: Iterator[Mapping[str, np.ndarray]], table: np.ndarray, wanted: int
) -> CorpusStats:
    tokens: list[int] = []
    spelled: list[int] = []
    left = wanted
    for document in documents:
        ids = document["targets"]
        tokens.append(ids.size)
        spelled.append(int(table[ids].sum()))
        left -= ids.size
        if left <= 0:
            break
    whole = next(documents, None) is None
    return CorpusStats(name, np.array(tokens, np.int64), np.array(spelled, np.int64), whole)


def _reading(run: RunConfig, task: seqio.Task | seqio.Mixture, split: str, training: bool) -> dict:
    """How the run reads its files, but without waiting for a full shuffle buffer where SeqIO lets us."""
    return {
        "split": split,
        "use_cached": run.use_cached,
        "shuffle": training,
        "seed": run.seed,
        "shard_info": seqio.ShardInfo(index=jax.process_index(), num_shards=jax.process_count()),
        "try_in_mem_cache": False,
        **({"shuffle_buffer_size": 1} if isinstance(task, seqio.Task) else {}),
    }


def readable(ids: Sequence[int] | np.ndarray, vocabulary: seqio.Vocabulary) -> str:
    """The text of `ids` [n]: sentinels as <extra_id_N>, EOS as </s>, half a character as its bytes.

    >>> readable([107, 358, 108, 1, 0], seqio.ByteVocabulary(extra_ids=100))
    'h<extra_id_0>i</s><pad>'
    """
    return "".join(piece.text for piece in pieces(ids, vocabulary))


def pieces(ids: Sequence[int] | np.ndarray, vocabulary: seqio.Vocabulary) -> list[Piece]:
    """`readable`, in pieces that say what they are; text between two others is one piece."""
    marked = [(*_mark(int(token), vocabulary), int(token)) for token in ids]
    result: list[Piece] = []
    for kind, run in itertools.groupby(marked, key=lambda entry: entry[0]):
        if kind == "text":
            result.append(Piece("text", _spell([token for _, _, token in run], vocabulary)))
        else:
            result += [Piece(kind, name) for _, name, _ in run]
    return result


def _mark(token: int, vocabulary: seqio.Vocabulary) -> tuple[Kind, str]:
    """The kind of an id, and its name where it is not text."""
    size = vocabulary.vocab_size
    named = {vocabulary.unk_id: "<unk>", vocabulary.eos_id: "</s>", vocabulary.pad_id: "<pad>"}
    if token in named:
        return "special", named[token]
    if size - num_sentinels(vocabulary) <= token < size:
        return "sentinel", f"<extra_id_{size - 1 - token}>"
    if not 0 <= token < size:
        return "special", f"<id {token}>"
    if isinstance(vocabulary, seqio.SentencePieceVocabulary) and vocabulary.tokenizer.is_control(token):
        return "special", vocabulary.tokenizer.id_to_piece(token)
    return "text", ""


def _spell(ids: Sequence[int], vocabulary: seqio.Vocabulary) -> str:
    """Text of ids that are neither special nor sentinels, with every space and every byte of it."""
    if isinstance(vocabulary, seqio.ByteVocabulary):
        data = bytes(token - 3 for token in ids)
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        data = b"".join(_piece_bytes(vocabulary.tokenizer, token) for token in ids)
    else:
        return vocabulary.decode(list(ids))
    return data.decode(errors="backslashreplace")


def _piece_bytes(model, token: int) -> bytes:
    name = model.id_to_piece(token)
    return bytes([int(name[1:-1], 16)]) if model.is_byte(token) else name.replace(_SPACE, " ").encode()


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
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character
