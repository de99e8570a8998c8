"""A user's own text files as a Task, of documents or of pairs, with no Python to write.

A glob of .txt or .jsonl files is checked and prepared once, on first use, by a TFDS builder: what is wrong
with a file comes out before training begins, and training reads a format that TensorFlow can shard, shuffle
and resume.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from pretrain.errors import InputError
from tasks.corpus import corpus_task
from tasks.documents import DocumentUnit, Format, InvalidUtf8, check_format, find_files, read_documents
from tasks.sources import (
    KeyedExample,
    LocalBuilder,
    PreparedTfdsDataSource,
    data_dir,
    prepare,
    unit_hash,
)

FilePath = str | os.PathLike
_PAIR = ("inputs", "targets")


def task(
    files: FilePath | Sequence[FilePath] | None,
    *,
    field: str = "text",
    validation_files: FilePath | Sequence[FilePath] | None = None,
    validation_fraction: float = 0.01,
    documents: DocumentUnit = "lines",
    invalid_utf8: InvalidUtf8 = "replace",
    vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Task:
    """Returns the Task `text_files` over the user's own files.

    The prepared data lie in `text_files/FINGERPRINT` of the TFDS data directory, and can be deleted. The
    fingerprint is of the files' paths, sizes and times and of the settings: an edited file is prepared anew.

    Args:
      files: a glob or a list of globs of .txt, .jsonl, .txt.gz or .jsonl.gz; relative ones start at the
        current directory. It must be given: None is what a run file says before you do.
      field: the field of a .jsonl object that holds the document.
      validation_files: globs of the validation split; a file that `files` matches too is for validation only.
      validation_fraction: without `validation_files`, the share of documents, picked by a hash of their text,
        that makes the validation split; 0 for none. A document keeps its split when the corpus grows, and
        equal documents share theirs.
      documents: "lines" makes each line of a .txt file a document, "files" the whole file.
      invalid_utf8: "replace" mends text with U+FFFD and says on stderr how often; "refuse" stops there.
      vocabulary: bytes unless given.

    Raises:
      InputError: a setting is wrong, at once; or a file is, or a split is empty, on first use of the data.
    """
    _check(documents, "documents", DocumentUnit)
    if not isinstance(field, str):
        raise InputError(f"field is {field!r}: set it to the name of one, as --gin.FIELD=\"'text'\".")
    format = Format((field,), documents, invalid_utf8)
    source = _source(files, validation_files, validation_fraction, format)
    return corpus_task("text_files", source, vocabulary)


def pairs(
    files: FilePath | Sequence[FilePath] | None,
    *,
    fields: Sequence[str] = ("inputs", "targets"),
    validation_files: FilePath | Sequence[FilePath] | None = None,
    validation_fraction: float = 0.01,
    invalid_utf8: InvalidUtf8 = "replace",
    vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Task:
    """Returns the Task `text_pairs` over the user's own .jsonl files, with the features inputs and targets.

    As `task`, but a document is a pair of texts, such as a question and its answer; those with a blank text
    are left out.

    Args:
      files: a glob or a list of globs of .jsonl or .jsonl.gz.
      fields: the fields of an object that hold the inputs and the targets.
      validation_files: as for `task`.
      validation_fraction: without `validation_files`, the share of pairs, picked by a hash of the inputs,
        that makes the validation split; 0 for none. Pairs with equal inputs share their split.
      invalid_utf8: "replace" mends text with U+FFFD and says on stderr how often; "refuse" stops there.
      vocabulary: bytes unless given; of both features.

    Raises:
      InputError: a setting is wrong, at once; or a file is, or a split is empty, on first use of the data.
    """
    of_text = isinstance(fields, list | tuple) and all(isinstance(name, str) for name in fields)
    if not of_text or len(fields) != 2 or fields[0] == fields[1]:
        example = "--gin.FIELDS=\"['question', 'answer']\""
        raise InputError(f"fields is {fields!r}: set it to the names of two, such as {example}.")
    format = Format(tuple(fields), invalid_utf8=invalid_utf8)
    source = _source(files, validation_files, validation_fraction, format)
    return corpus_task("text_pairs", source, vocabulary, {name: name for name in _PAIR})


def _source(
    files: FilePath | Sequence[FilePath] | None,
    validation_files: FilePath | Sequence[FilePath] | None,
    validation_fraction: float,
    format: Format,
) -> seqio.DataSource:
    if not 0 <= validation_fraction < 1:
        raise InputError(
            f"validation_fraction is {validation_fraction}: set it to at least 0 and less than 1."
        )
    _check(format.invalid_utf8, "invalid_utf8", InvalidUtf8)
    suffix = "jsonl" if len(format.fields) > 1 else "txt"
    globs = _globs(files, "files", f"--gin.FILES=\"'/data/*.{suffix}'\"")
    held_out = []
    if validation_files is not None:
        held_out = _globs(validation_files, "validation_files", f"'/data/validation/*.{suffix}'")

    def open_builder() -> tfds.core.DatasetBuilder:
        config = _configure(globs, held_out, validation_fraction, format)
        return prepare(lambda: TextFiles(config=config, data_dir=data_dir()))

    splits = {"train": "train"}
    if held_out or validation_fraction:
        splits["validation"] = "validation"
    return PreparedTfdsDataSource(open_builder, splits)


def _check(value: Any, name: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise InputError(f"{name} is {value!r}: set it to {' or '.join(map(repr, get_args(kind)))}.")


@dataclasses.dataclass
class TextFilesConfig(tfds.core.BuilderConfig):
    """What is read, and how; the name is the fingerprint of all that.

    Attributes:
      files: the files of each split; both splits' are the same where `validation_fraction` divides them.
      validation_fraction: None where every file belongs to one split.
      format: how a file becomes documents.
    """

    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    validation_fraction: float | None = None
    format: Format = dataclasses.field(default_factory=Format)


class TextFiles(LocalBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of one set of files and settings, its `TextFilesConfig`."""

    VERSION = tfds.core.Version("1.1.0")
    _read = _mended = 0
    _first_mended = ""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {name: tfds.features.Text() for name in self._names}

    @property
    def _names(self) -> Sequence[str]:
        return _PAIR if len(self.builder_config.format.fields) > 1 else ("text",)

    def splits(self) -> Sequence[str]:
        return list(self.builder_config.files)

    def documents(self, split: str) -> Iterator[KeyedExample]:
        config = self.builder_config
        total = kept = 0
        least = 1.0
        for index, path in enumerate(config.files[split]):
            for document in read_documents(path, config.format):
                total += 1
                if config.validation_fraction is not None:
                    position = unit_hash(document.texts[0].encode())
                    least = min(least, position)
                    if (position < config.validation_fraction) != (split == "validation"):
                        continue
                kept += 1
                if document.mended:
                    self._mended += 1
                    self._first_mended = self._first_mended or f"{path}, line {document.line}"
                yield f"{index}:{document.line}", dict(zip(self._names, document.texts, strict=True))
        self._read += kept
        if not kept:
            raise InputError(_why_empty(split, config, total, least))

    def _post_download_and_prepare_hook(self) -> None:
        if self._mended:
            print(
                f"text_files: {self._mended} of {self._read} documents held text that is not UTF-8, now "
                f"U+FFFD (first: {self._first_mended}): convert the files, or set invalid_utf8='refuse'.",
                file=sys.stderr,
            )


def _why_empty(split: str, config: TextFilesConfig, total: int, least: float) -> str:
    paths, fraction = config.files[split], config.validation_fraction
    if not total:
        setting = "validation_files" if split == "validation" and fraction is None else "files"
        return f"{setting} matches {len(paths)} file(s) without any text ({paths[0]}): correct the glob."
    if split == "train":
        return (
            f"validation_fraction={fraction} leaves none of the {total} document(s) for training: "
            "lower it, add text, or give validation_files."
        )
    if total == 1:
        return "The files hold one document, which cannot be split: add text, or give validation_files."
    enough = (math.floor(least * 1000) + 1) / 1000
    return (
        f"validation_fraction={fraction} picks none of the {total} document(s) for the validation split: "
        f"set it to {enough} or more, add text, or give validation_files."
    )


def _globs(files: FilePath | Sequence[FilePath] | None, setting: str, example: str) -> list[str]:
    """The globs, made absolute now, since the data are only opened later."""
    patterns = [files] if isinstance(files, FilePath) else files
    if not isinstance(patterns, list | tuple) or not patterns or not all(map(_is_glob, patterns)):
        raise InputError(f"{setting} is {files!r}: set it to a glob or a list of globs, as {example}.")
    return [
        pattern if "://" in pattern else os.path.abspath(os.path.expanduser(pattern))
        for pattern in map(os.fspath, patterns)
    ]


def _is_glob(pattern: object) -> bool:
    return isinstance(pattern, FilePath) and os.fspath(pattern) != ""


def _configure(
    globs: list[str], held_out_globs: list[str], validation_fraction: float, format: Format
) -> TextFilesConfig:
    """Finds the files and takes their fingerprint."""
    train = find_files(globs, "files")
    check_format(train, format)
    files = {"train": train}
    if held_out_globs:
        files["validation"] = find_files(held_out_globs, "validation_files")
        files["train"] = [path for path in train if path not in set(files["validation"])]
        if not files["train"]:
            raise InputError(
                f"files matches only what validation_files matches too ({train[0]}): widen its glob."
            )
    elif validation_fraction:
        files["validation"] = train
    fraction = None if held_out_globs or not validation_fraction else validation_fraction
    stamps = {path: _stamp(path) for paths in files.values() for path in paths}
    state = [files, stamps, fraction, dataclasses.asdict(format)]
    return TextFilesConfig(
        name=hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16],
        description=f"{len(train)} file(s): {', '.join(globs)}",
        files=files,
        validation_fraction=fraction,
        format=format,
    )


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change of a file."""
    if "://" in path:
        remote = tf.io.gfile.stat(path)
        return remote.length, remote.mtime_nsec
    try:
        local = os.stat(path)  # of a local file TensorFlow knows only the second
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): correct the glob or the link."
        ) from error
    return local.st_size, local.st_mtime_ns
