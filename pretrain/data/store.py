"""The indexed store of a corpus: the tokens of all documents end to end, read by position.

`pretrain cache` makes one; `manifest.py` says which files it has. It knows no objective and no length of
examples: those are for its reader to choose.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from pretrain.data.manifest import (
    Manifest,
    Shard,
    damage,
    digest,
    new_digest,
    replacing,
    shard_paths,
    writable,
)
from pretrain.errors import InputError

END = -(2**31)  # after each document in what `write_shard` takes; no vocabulary has such an id
_ONE_BY_ONE = "group_size:1,zstd:1"  # a record is compressed alone, so reading it decompresses no other
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"  # the library's advice
_READ_BUFFER_BYTES = 16 * 1024
_CRC_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Store:
    """A split of a finished store, made by `Store.open`.

    Threads may share it. A process that is forked from one that has read from it may not: the library that
    reads the files does not survive a fork.

    Attributes:
        directory: where the store lies.
        split: which split of it.
        manifest: what the whole store holds.
        eos: the id that stands after every document; None puts nothing between them.
    """

    directory: Path
    split: str
    manifest: Manifest
    eos: int | None = None

    @classmethod
    def open(cls, directory: str | os.PathLike, split: str, eos: int | None = None) -> "Store":
        """Opens a split; reads no more than the manifest and the sizes of the files.

        Raises:
            InputError: it is no finished store, has no such split, or a file is missing or has another size.
        """
        directory = Path(directory)
        manifest = Manifest.of(directory)
        if split not in manifest.splits:
            raise InputError(
                f"The store {directory} has no split {split!r} but {', '.join(manifest.splits)}: "
                f"run the same `pretrain cache` with --splits {split} to add it."
            )
        for shard in manifest.splits[split].shards:
            shard.check_sizes(directory)
        return cls(directory, split, manifest, eos)

    @property
    def tokens(self) -> int:
        """How many tokens there are to read; where `eos` is given, with one after each document."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of all documents end to end, int32 [stop - start].

        Raises:
            InputError: a record that was read is damaged; names the file, the record and what to do.
            IndexError: the range is not within the store.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a store of {self.tokens}")
        parts = [np.zeros(0, np.int32)]
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for shard, begin in zip(self._shards[first:], self._starts[first:].tolist(), strict=False):
            if begin >= stop:
                break
            parts.append(shard.read(max(start - begin, 0), min(stop - begin, shard.length)))
        return np.concatenate(parts)

    def num_chunks(self, length: int) -> int:
        """How many chunks of `length` tokens there are; the last one may be shorter."""
        return -(-self.tokens // length)

    def chunk(self, index: int, length: int) -> np.ndarray:
        """Chunk number `index` of those that are cut one after the other from the start, int32 [length]."""
        return self.read(index * length, min((index + 1) * length, self.tokens))

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    def document_ends(self, shard: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Where the documents `first` to `last` of a shard end, and before them where `first` begins.

        Returns:
            int64 [documents + 1], positions for `read`.
        """
        return self._shards[shard].document_ends(first, last) + self._starts[shard]

    @functools.cached_property
    def _shards(self) -> list["_ShardReader"]:
        shards = self.manifest.splits[self.split].shards
        return [_ShardReader(self.directory, shard, self.manifest, self.eos) for shard in shards]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Where each shard starts, then where the last one ends; int64 [shards + 1]."""
        return np.cumsum([0, *(shard.length for shard in self._shards)], dtype=np.int64)


class _ShardReader:
    """Reads the files of one shard, and checks what it reads."""

    def __init__(self, directory: Path, shard: Shard, manifest: Manifest, eos: int | None = None):
        self.length = shard.tokens + (0 if eos is None else shard.documents)
        self._shard, self._eos = shard, eos
        self._blocks_path, self._ends_path = shard_paths(directory, shard.name)
        self._dtype, self._block_tokens = manifest.dtype, manifest.block_tokens
        self._records = -(-shard.tokens // manifest.block_tokens)
        self._lock = threading.Lock()
        # A reader that goes through the shard in order needs the same block several times.
        self._recent_block = functools.lru_cache(maxsize=4)(self._block)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the shard, EOS among them if there is one, int32."""
        if self._eos is None:
            return self._read_tokens(start, stop)
        # An end counts the tokens and the EOS through it, so the EOS of document k is number ends[k] - 1.
        first, last = np.searchsorted(self.ends, (start, stop), "right").tolist()
        tokens = self._read_tokens(start - first, stop - last)
        if first == last:
            return tokens
        places = self.ends[first:last] - np.arange(first, last) - 1 - (start - first)
        return np.insert(tokens, places, self._eos)

    def _read_tokens(self, start: int, stop: int) -> np.ndarray:
        first = start // self._block_tokens
        blocks = [self._recent_block(record) for record in range(first, -(-stop // self._block_tokens))]
        skip = start - first * self._block_tokens
        tokens = np.concatenate([*blocks, np.zeros(0, self._dtype)])
        return tokens[skip : skip + stop - start].astype(np.int32)

    def _block(self, record: int) -> np.ndarray:
        """The ids of a record, as they are stored."""
        what = f"{self._blocks_path}, record {record},"
        try:
            with self._lock:
                # Not read([record]), which takes time in proportion to the records of the file.
                self._blocks.seek(record)
                content = self._blocks.read()
        except (RuntimeError, IndexError) as error:
            self.__dict__.pop("_blocks", None)  # a reader that failed at one record fails at all
            raise damage(what, "the library cannot read it") from error
        payload = content[_CRC_BYTES:]
        if content != encode_block(payload):
            raise damage(what, "its checksum is wrong")
        count = min(self._block_tokens, self._shard.tokens - record * self._block_tokens)
        if len(payload) != count * self._dtype.itemsize:
            raise damage(what, f"it does not hold {count} tokens")
        return np.frombuffer(payload, self._dtype)

    @functools.cached_property
    def _blocks(self) -> Any:
        path = str(self._blocks_path)
        with contextlib.suppress(FileNotFoundError):
            self._blocks_path.open("rb").close()  # too many open files are none to the library
        reader = array_record_module.ArrayRecordReader(
            path, _RANDOM_ACCESS, file_reader_buffer_size=_READ_BUFFER_BYTES
        )
        if reader.num_records() != self._records:  # none, of a file that is cut off or not there
            raise damage(path, f"the library finds {reader.num_records()} of {self._records} records")
        return reader

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Tokens and EOS through the end of each document, int64 [documents], left on disk."""
        try:
            ends = np.load(self._ends_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise damage(self._ends_path, "NumPy cannot read it") from error
        if ends.shape != (self._shard.documents,) or digest(ends) != self._shard.ends_digest:
            raise damage(self._ends_path, "its checksum is wrong")
        return ends.view(np.ndarray)  # a memmap itself is several times slower to index

    def document_ends(self, first: int, last: int | None) -> np.ndarray:
        """Where `first` begins and where each document of these ends, int64 [documents + 1]."""
        ends = self.ends[first:last]
        before = self.ends[first - 1] if first else 0
        counted = np.concatenate([[before], ends])
        return counted if self._eos is not None else counted - np.arange(first, first + len(counted))

    def problems(self) -> Iterator[str]:
        """Reads everything; yields what is damaged, a sentence each."""
        seen, tokens = "", new_digest()
        for record in range(self._records):
            try:
                tokens.update(self._block(record))
            except InputError as error:
                if str(error) != seen:  # a file that cannot be opened is one problem, not one a record
                    yield str(error)
                seen = str(error)
        if not seen and tokens.hexdigest() != self._shard.digest:
            yield str(damage(self._blocks_path, "its tokens are others"))
        try:
            _ = self.ends
        except InputError as error:
            yield str(error)


def verify(directory: str | os.PathLike, seen: Callable[[str], None] = lambda name: None) -> list[str]:
    """Reads a whole store and compares it with its checksums and digests.

    Args:
        directory: a finished store.
        seen: called with the name of each shard that has been read.

    Returns:
        What is damaged or missing, a sentence each: the file, the record, and what to do.

    Raises:
        InputError: it is no finished store.
    """
    directory = Path(directory)
    manifest, problems = Manifest.of(directory), []
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        try:
            shard.check_sizes(directory)
        except InputError as error:
            problems.append(str(error))
        else:
            problems += _ShardReader(directory, shard, manifest).problems()
        seen(shard.name)
    return problems


def write_shard(
    directory: Path, name: str, settings: Manifest, bytes_of: np.ndarray, stream: Iterable[np.ndarray]
) -> Shard:
    """Writes the two files of a shard, which get their names when they are complete.

    Args:
        directory: where the store lies.
        name: of the shard.
        settings: what the store is to hold.
        bytes_of: int [vocab_size], the bytes of text that each id stands for.
        stream: documents end to end, END after each, int32 [n]; cut anywhere.

    Raises:
        InputError: the files cannot be written, or there are ids that the vocabulary does not have.
    """
    blocks_path, ends_path = shard_paths(directory, name)
    ends, length = [np.zeros(0, np.int64)], 0
    counts = np.zeros(settings.vocab_size, np.int64)
    with replacing(blocks_path) as blocks, replacing(ends_path) as ends_file:
        writer = _BlockWriter(blocks, settings.dtype, settings.block_tokens)
        for piece in stream:
            ends.append(length + 1 + np.flatnonzero(piece == END))
            length += len(piece)
            tokens = piece[piece != END]
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < settings.vocab_size:
                raise InputError(
                    f"Task {settings.task!r} has ids from {tokens.min()} to {tokens.max()} ({name}), but its "
                    f"vocabulary has {settings.vocab_size}: give its 'targets' the vocabulary of these ids."
                )
            # To count each id is faster than to look each token up.
            counts += np.bincount(tokens, minlength=len(counts))
            writer.add(tokens)
        writer.close()
        all_ends = np.concatenate(ends)
        with writable(ends_file), ends_file.open("wb") as file:
            np.save(file, all_ends, allow_pickle=False)
        return Shard(
            name=name,
            tokens=int(counts.sum()),
            documents=len(all_ends),
            text_bytes=int(counts @ bytes_of),
            block_bytes=blocks.stat().st_size,
            end_bytes=ends_file.stat().st_size,
            digest=writer.digest.hexdigest(),
            ends_digest=digest(all_ends),
        )


class _BlockWriter:
    """Cuts tokens into blocks and writes them."""

    def __init__(self, path: Path, dtype: np.dtype, block_tokens: int):
        self.digest = new_digest()
        self._path, self._dtype, self._block_tokens = path, dtype, block_tokens
        self._rest = np.zeros(0, dtype)
        with writable(path):
            self._writer = array_record_module.ArrayRecordWriter(str(path), _ONE_BY_ONE)

    def add(self, tokens: np.ndarray) -> None:
        tokens = np.concatenate([self._rest, tokens.astype(self._dtype)])
        whole = len(tokens) // self._block_tokens * self._block_tokens
        for block in tokens[:whole].reshape(-1, self._block_tokens):
            self._write(block)
        self._rest = tokens[whole:]

    def close(self) -> None:
        if len(self._rest):
            self._write(self._rest)
        with writable(self._path):
            self._writer.close()

    def _write(self, block: np.ndarray) -> None:
        payload = block.tobytes()
        self.digest.update(payload)
        with writable(self._path):
            self._writer.write(encode_block(payload))


def encode_block(payload: bytes) -> bytes:
    """The record of a block: the CRC-32 of its ids, little-endian, then the ids.

    >>> encode_block(b"abc").hex()
    'c2412435616263'
    """
    return zlib.crc32(payload).to_bytes(_CRC_BYTES, "little") + payload
