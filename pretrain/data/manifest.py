"""What an indexed store holds, as the JSON files in its directory say it.

    settings.json                        what is cached; written first
    train-00003-of-00016.array_record    a shard of a split: blocks of token ids, each with its CRC-32
    train-00003-of-00016.ends.npy        where its documents end
    train-00003-of-00016.json            its counts and digests; written after the two
    manifest.json                        the settings and all shards; written last

Every file gets its name when it is complete, so what has a manifest is whole.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from pretrain.errors import InputError

FORMAT = 1
SETTINGS, MANIFEST, PARTIAL, LOCK = "settings.json", "manifest.json", ".partial-", "lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """What one shard holds.

    Attributes:
        name: its files' names, without their endings.
        tokens: how many there are, without EOS.
        documents: how many there are; each lies in one shard.
        text_bytes: bytes of text that the tokens stand for.
        block_bytes: size of the .array_record file.
        end_bytes: size of the .ends.npy file.
        digest: of all token ids, as they are stored.
        ends_digest: of where the documents end, as int64.
    """

    name: str
    tokens: int
    documents: int
    text_bytes: int
    block_bytes: int
    end_bytes: int
    digest: str
    ends_digest: str

    def check_sizes(self, directory: Path) -> None:
        """Raises InputError if a file is missing, or not as long as it was."""
        sizes = (self.block_bytes, self.end_bytes)
        for path, size in zip(shard_paths(directory, self.name), sizes, strict=True):
            if not path.is_file():
                raise InputError(f"{path} is missing: run the same `pretrain cache` again to have it made.")
            if path.stat().st_size != size:
                raise damage(path, f"it has {path.stat().st_size:,} bytes and had {size:,}")


def shard_paths(directory: Path, name: str) -> tuple[Path, Path]:
    """Where the blocks and the ends of a shard are."""
    return directory / f"{name}.array_record", directory / f"{name}.ends.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A split of the corpus: what it is read from, in how many shards, and the shards once they are made."""

    source: str
    num_shards: int
    shards: tuple[Shard, ...] = ()

    def total(self, count: str) -> int:
        """The sum of a count over the shards."""
        return sum(getattr(shard, count) for shard in self.shards)

    @property
    def digest(self) -> str:
        """Of the digests of the shards, in order."""
        return digest("".join(shard.digest + shard.ends_digest for shard in self.shards).encode())

    def as_json(self) -> dict[str, Any]:
        totals = {count: self.total(count) for count in ("tokens", "documents", "text_bytes")}
        return ({**totals, "digest": self.digest} if self.shards else {}) | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds; without shards, what it is to hold.

    Attributes:
        task: name of the SeqIO task.
        vocabulary: its `pretrain.data.vocabulary.fingerprint`.
        vocab_size: ids of the vocabulary.
        block_tokens: tokens in a block; the last one of a shard may have fewer.
        splits: by name.
    """

    task: str
    vocabulary: str
    vocab_size: int
    block_tokens: int
    splits: Mapping[str, Split]

    @property
    def dtype(self) -> np.dtype:
        """Of the ids on disk: as small as the vocabulary allows, little-endian.

        >>> Manifest(task="", vocabulary="", vocab_size=359, block_tokens=1, splits={}).dtype
        dtype('uint16')
        """
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def write(self, path: Path) -> None:
        splits = {name: split.as_json() for name, split in self.splits.items()}
        head = {"format": FORMAT, "dtype": self.dtype.name}
        write_json(path, {**head, **dataclasses.asdict(self), "splits": splits})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises InputError if the file is damaged, or of another format."""
        content = read_json(path)
        if content.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {content.get('format')}, and this version reads {FORMAT}: "
                "cache the corpus again, into another directory."
            )
        splits = {
            name: Split(
                source=split["source"],
                num_shards=split["num_shards"],
                shards=tuple(Shard(**shard) for shard in split["shards"]),
            )
            for name, split in content["splits"].items()
        }
        fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "splits": splits})

    @classmethod
    def of(cls, directory: Path) -> "Manifest":
        """That of a finished store. Raises InputError if there is none in the directory."""
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(
                f"{directory} is no finished store (it has no {MANIFEST}): make it, or go on with it, by "
                f"`pretrain cache TASK --out {directory}`."
            )
        return cls.read(path)


def lock_alone(file: IO) -> None:
    """Raises BlockingIOError if another process has locked the open file, or removed it meanwhile."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(file.fileno()).st_nlink == 0:  # a third process may lock one of that name
        raise BlockingIOError(errno.EAGAIN, "it was removed")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory of a store, and keeps other commands out of it."""
    with writable(directory / SETTINGS):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a")  # a file that can be written: NFS locks no other
    with lock:
        try:
            lock_alone(lock)
        except BlockingIOError as error:
            raise InputError(
                f"Another `pretrain cache` is writing to {directory}: wait for it, or take another --out."
            ) from error
        try:
            yield
        finally:
            if not any((directory / name).exists() for name in (SETTINGS, MANIFEST)):
                (directory / LOCK).unlink()  # the directory is something else's


def claim(directory: Path, wanted: Manifest) -> None:
    """Makes a directory the store of this, or adds the splits to the one that it is.

    Raises:
        InputError: it holds a store of something else, or other files.
    """
    there = next((path for name in (SETTINGS, MANIFEST) if (path := directory / name).is_file()), None)
    partial = re.compile(re.escape(PARTIAL) + r"\d+$")
    others = (path.name for path in directory.iterdir() if path.name != LOCK)
    names = sorted(name for name in others if not partial.search(name))
    if there is None and names:
        raise InputError(f"{directory} is not empty and no store ({names[0]} is in it): take another --out.")
    try:
        before = Manifest.read(there) if there else wanted
    except InputError as error:  # without it nobody knows what the shards are of
        raise InputError(
            f"{there} is damaged: delete {directory} and cache again, or take another --out."
        ) from error
    if different := _differences(before, wanted):
        raise InputError(
            f"{directory} holds a store of something else ({'; '.join(different)}): take another --out, or "
            "delete that store."
        )
    splits = {
        name: dataclasses.replace(split, shards=())
        for name, split in {**before.splits, **wanted.splits}.items()
    }
    claimed = dataclasses.replace(wanted, splits=splits)
    with writable(directory / SETTINGS):
        for path in directory.iterdir():
            if path.name not in names and path.name != LOCK:
                path.unlink()  # what a command that was killed had begun
        if there != directory / SETTINGS or before != claimed:
            claimed.write(directory / SETTINGS)


def _differences(there: Manifest, wanted: Manifest) -> list[str]:
    """What keeps the shards of one from being shards of the other."""
    if there.task != wanted.task:
        return [f"its task is {there.task!r}, not {wanted.task!r}"]
    found = []
    if there.vocabulary != wanted.vocabulary:
        found.append(
            f"its vocabulary has {there.vocab_size} ids and the fingerprint {there.vocabulary}, not "
            f"{wanted.vocab_size} and {wanted.vocabulary}"
        )
    if there.block_tokens != wanted.block_tokens:
        found.append(f"its blocks have {there.block_tokens} tokens, not {wanted.block_tokens}")
    for name, now in wanted.splits.items():
        before = there.splits.get(name, now)
        if (before.source, before.num_shards) != (now.source, now.num_shards):
            found.append(f"its {name} data are others")
    return found


def finish(directory: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest, with the finished splits of earlier commands, unless it is there already."""
    path = directory / MANIFEST
    before = Manifest.read(path) if path.is_file() else None
    if before:
        manifest = dataclasses.replace(manifest, splits={**before.splits, **manifest.splits})
    if manifest != before:
        with writable(path):
            manifest.write(path)
    return manifest


def damage(what: str | Path, why: str) -> InputError:
    """The error of a file that is not what was written; caching replaces what was deleted."""
    return InputError(f"{what} is damaged ({why}): delete that file and run the same `pretrain cache` again.")


def new_digest() -> Any:
    """A `hashlib` object for BLAKE2b of 128 bits."""
    return hashlib.blake2b(digest_size=16)


def digest(data: bytes | np.ndarray) -> str:
    """BLAKE2b of the bytes, 128 bits.

    >>> digest(b"") == digest(np.zeros(0, np.int64))
    True
    """
    result = new_digest()
    result.update(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data)
    return result.hexdigest()


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the errors of writing a file into an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the second from ArrayRecord
        raise InputError(
            f"{path.parent} cannot be written to ({error}): make room there or take another --out, and run "
            "the same `pretrain cache` again."
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end, whole and on disk, or is removed."""
    # Not by the process: those of two machines may have the same number.
    partial = path.with_name(f"{path.name}{PARTIAL}{secrets.randbits(63)}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def checksum_of(content: Mapping[str, Any]) -> str:
    """The digest of what JSON makes of it, the keys in order."""
    return digest(json.dumps(content, sort_keys=True).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, with a checksum of itself."""
    checksum = checksum_of(content)
    with replacing(path) as partial:
        partial.write_text(json.dumps({**content, "checksum": checksum}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises InputError if it is something else now."""
    try:
        content = json.loads(path.read_text())
        checksum = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise damage(path, "it is not what was written") from error
    if checksum != checksum_of(content):
        raise damage(path, "its checksum is wrong")
    return content
