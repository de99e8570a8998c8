"""The running interpreter's own standard library: real text that every machine has, without any network."""

import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import seqio
import tensorflow_datasets as tfds

from pretrain.errors import InputError
from tasks.corpus import corpus_task
from tasks.sources import KeyedExample, LocalBuilder, PreparedTfdsDataSource, data_dir, prepare, unit_hash

# Tests are more than half of the library's text and much alike; the rest is not the library's.
_SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SUFFIXES = (".py", ".txt", ".rst")
_MAX_BYTES = 1024 * 1024
_VALIDATION_FRACTION = _TEST_FRACTION = 0.02


class PythonStdlib(LocalBuilder):
    """TFDS builder: one document a source file, named by its path; one config an interpreter version."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(
            name=f"py{platform.python_version()}",
            description=f"Standard library of Python {platform.python_version()}.",
        ),
    )

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {"path": tfds.features.Text(), "text": tfds.features.Text()}

    def splits(self) -> Sequence[str]:
        return ("train", "validation", "test")

    def documents(self, split: str) -> Iterator[KeyedExample]:
        root = Path(sysconfig.get_paths()["stdlib"])
        found = False
        for path in source_files(root):
            if split_of(path) == split and (text := _text(root / path)):
                found = True
                yield path, {"path": path, "text": text}
        if not found:
            raise InputError(
                f"{root} has no Python source for the {split} split of python_stdlib: "
                "use an interpreter that came with its library's source, or tasks.text_files."
            )


def source_files(root: Path) -> Iterator[str]:
    """Yields the posix paths, relative to `root` and in a fixed order, of the library's text files."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(set(subdirectories) - _SKIPPED_DIRECTORIES)
        for name in sorted(names):
            if name.endswith(_SUFFIXES):
                yield (Path(directory) / name).relative_to(root).as_posix()


def split_of(path: str) -> str:
    """The split of a document: a function of its path alone.

    >>> split_of("asyncio/base_events.py"), split_of("asyncio/base_events.py")
    ('train', 'train')
    """
    position = unit_hash(path.encode())
    if position < _VALIDATION_FRACTION:
        return "validation"
    return "test" if position < _VALIDATION_FRACTION + _TEST_FRACTION else "train"


def _text(path: Path) -> str:
    """The document in a file, or "" where it is blank, huge, or not UTF-8."""
    if path.stat().st_size > _MAX_BYTES:
        return ""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return text if text.strip() else ""


def task(*, vocabulary: seqio.Vocabulary | None = None) -> seqio.Task:
    """Returns the Task `python_stdlib`: about 12 MB in 740 documents, split 96/2/2 by a hash of the path.

    It is prepared on first use, in seconds, as `python_stdlib/py3.X.Y` in the TFDS data directory.

    Args:
      vocabulary: bytes unless given.
    """
    source = PreparedTfdsDataSource(
        lambda: prepare(lambda: PythonStdlib(data_dir=data_dir())),
        splits={split: split for split in ("train", "validation", "test")},
    )
    return corpus_task("python_stdlib", source, vocabulary)


seqio.TaskRegistry.add_provider("python_stdlib", task())
