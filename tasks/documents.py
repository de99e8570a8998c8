"""Documents out of a user's text files; whatever is wrong with a file is said with its name and line."""

import codecs
import contextlib
import dataclasses
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Literal

import tensorflow as tf

from pretrain.errors import InputError

DocumentUnit = Literal["lines", "files"]
InvalidUtf8 = Literal["replace", "refuse"]

_TEXT = (".txt", ".txt.gz")
_JSON = (".jsonl", ".jsonl.gz")
_GZIP_MAGIC = b"\x1f\x8b"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Format:
    """How a file becomes documents.

    Attributes:
      fields: the fields of a .jsonl object that hold the document's texts.
      documents: what is one document of a .txt file, a line or the whole file.
      invalid_utf8: whether text that is not UTF-8 is mended with U+FFFD, or refused.
    """

    fields: Sequence[str] = ("text",)
    documents: DocumentUnit = "lines"
    invalid_utf8: InvalidUtf8 = "replace"


@dataclasses.dataclass(frozen=True)
class Document:
    """Texts that are not blank, one a field, the line where they are, and whether UTF-8 had to be mended."""

    texts: Sequence[str]
    line: int
    mended: bool


def find_files(patterns: Sequence[str], setting: str) -> list[str]:
    """Returns the files that the globs match, each once, sorted by path.

    Args:
      patterns: globs (`**` for any depth, local ones only) or plain paths; `gs://` and the like work too.
      setting: the name of the user's setting, for messages.

    Raises:
      InputError: a glob matches no file, or a file is neither .txt nor .jsonl, as is or with .gz.
    """
    files = sorted({path for pattern in patterns for path in _expand(pattern, setting)})
    for path in files:
        if not path.endswith(_TEXT + _JSON):
            raise InputError(
                f"{path}, which {setting} matches, is of no known format: "
                "make it .txt, .jsonl, .txt.gz or .jsonl.gz, or narrow the glob."
            )
    return files


def check_format(paths: Sequence[str], format: Format) -> None:
    """Raises InputError if a setting is for other files than all of these."""
    if format.documents != "lines" and all(path.endswith(_JSON) for path in paths):
        raise InputError(
            f"documents is {format.documents!r}, which is for .txt files, and files matches none "
            f"({paths[0]}): leave it out."
        )
    field, *others = format.fields
    if field != "text" and not others and all(path.endswith(_TEXT) for path in paths):
        raise InputError(
            f"field is {field!r}, which is for .jsonl files, and files matches none ({paths[0]}): leave it "
            "out."
        )


def read_documents(path: str, format: Format) -> Iterator[Document]:
    """Yields the documents of one file, in order, without those that have a blank text.

    Raises:
      InputError: the file cannot be read or is cut short, a .jsonl line is not an object with a string in
        each field, a .txt file is asked for several fields, or text is not UTF-8 and `format` refuses that.
    """
    if path.endswith(_TEXT) and len(format.fields) > 1:
        names = " and ".join(map(repr, format.fields))
        raise InputError(f"{path} has no fields {names}: give .jsonl files, an object with both a line.")
    with _open(path) as stream:
        if path.endswith(_TEXT) and format.documents == "files":
            lines: Iterator[tuple[int, bytes]] = iter([(1, stream.read().removeprefix(codecs.BOM_UTF8))])
        else:
            lines = _lines(stream)
        for number, line in lines:
            text, mended = _decode(line, path, number, format.invalid_utf8)
            texts = [text]
            if path.endswith(_JSON) and text.strip():
                texts, mended_escapes = _fields(text, path, number, format)
                mended = mended or mended_escapes
            if all(text.strip() for text in texts):
                yield Document(texts, number, mended)


def _expand(pattern: str, setting: str) -> list[str]:
    remote = "://" in pattern
    matches = tf.io.gfile.glob(pattern) if remote else glob.glob(pattern, recursive=True)
    if not matches and tf.io.gfile.exists(pattern):
        matches = [pattern]  # a plain path with brackets in it
    files = [path for path in matches if not tf.io.gfile.isdir(path)]
    if not files:
        found = "only directories (write a glob for the files in them)" if matches else "no file"
        raise InputError(f"{setting} {pattern!r} matches {found}: correct the path.")
    return files


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The bytes of a file, unpacked; errors while the caller reads them become `InputError`."""
    try:
        with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as stream:
            if not path.endswith(".gz"):
                yield stream
                return
            if stream.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:  # `gzip` takes an empty file for a good one
                raise gzip.BadGzipFile("it does not begin like one")
            stream.seek(0)
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): make it or copy it again.") from error
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"{path} cannot be read ({error}): check the file and its permissions.") from error


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _decode(data: bytes, path: str, line: int, invalid_utf8: InvalidUtf8) -> tuple[str, bool]:
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError as error:
        if invalid_utf8 == "refuse":
            line += data.count(b"\n", 0, error.start)
            raise InputError(
                f"{path}, line {line}, is not UTF-8 (byte 0x{data[error.start]:02x}): "
                "convert the file, or set invalid_utf8='replace'."
            ) from error
    return data.decode("utf-8", "replace"), True


def _fields(text: str, path: str, line: int, format: Format) -> tuple[list[str], bool]:
    """The document in a .jsonl line, and whether it was mended: JSON can write half a surrogate pair."""
    place = f"{path}, line {line},"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{place} is not JSON ({reason}): correct the line.") from error
    if not isinstance(record, dict):
        example = ", ".join(f'"{name}": "..."' for name in format.fields)
        raise InputError(f"{place} is not a JSON object: write one as {{{example}}} a line.")
    return _texts(record, place, format)


def _texts(record: Mapping[str, Any], place: str, format: Format) -> tuple[list[str], bool]:
    texts = []
    for name in format.fields:
        if name not in record:
            names = ", ".join(list(record)[:10]) or "none"
            raise InputError(f"{place} has no field {name!r}: name one that it has ({names}).")
        value = record[name]
        if not isinstance(value, str):
            raise InputError(
                f"{place} has {type(value).__name__}, not text, in field {name!r}: "
                "make it a string, or name a field that is."
            )
        if _SURROGATE.search(value) and format.invalid_utf8 == "refuse":
            raise InputError(
                f"{place} has half a surrogate pair in field {name!r}, which UTF-8 cannot write: "
                "correct the line, or set invalid_utf8='replace'."
            )
        texts.append(value)
    mended = [_SURROGATE.sub("\ufffd", text) for text in texts]
    return mended, mended != texts
