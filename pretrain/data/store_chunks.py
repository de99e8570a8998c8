"""How the documents of a store fall into chunks, each of which is found by its number."""

import abc
import dataclasses
import functools

import numpy as np

from pretrain.data.store import Store

_GROUP = 256  # documents whose chunks are counted anew to find one; of all others only sums are held


@dataclasses.dataclass(frozen=True)
class Chunks(abc.ABC):
    """The chunks of a store, as `data.chunks.cut_documents` makes them.

    Attributes:
        length: tokens of a full chunk.
        shortest: a shorter one is left out.
    """

    store: Store
    length: int
    shortest: int = 1

    @property
    @abc.abstractmethod
    def number(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The tokens of a chunk, int32 [up to length]."""


class OfAll(Chunks):
    """Of all documents end to end: all chunks are full but the last one."""

    @property
    def number(self) -> int:
        whole, rest = divmod(self.store.tokens, self.length)
        return whole + (rest >= self.shortest)

    def read(self, index: int) -> np.ndarray:
        return self.store.chunk(index, self.length)


class OfEach(Chunks):
    """Of each document on its own, whose last chunk may be short.

    Their numbers follow from where the documents end: 8 bytes a document are read once, and 1/256 of that
    is held.
    """

    @property
    def number(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._starts, index, "right")) - 1
        within = index - self._starts[shard]
        group = int(np.searchsorted(self._groups[shard], within, "right")) - 1
        ends = self.store.document_ends(shard, group * _GROUP, (group + 1) * _GROUP)
        through = np.cumsum(self._counts(ends)) + self._groups[shard][group]
        document = int(np.searchsorted(through, within, "right"))
        before = through[document - 1] if document else self._groups[shard][group]
        start = int(ends[document] + (within - before) * self.length)
        return self.store.read(start, min(start + self.length, int(ends[document + 1])))

    def _counts(self, ends: np.ndarray) -> np.ndarray:
        """Chunks of each document, int64 [n], by where the one before them and they end, int64 [n + 1]."""
        whole, rest = np.divmod(np.diff(ends), self.length)
        return whole + (rest >= self.shortest)

    @functools.cached_property
    def _groups(self) -> list[np.ndarray]:
        """Of each shard: the chunks before each group of documents, then all of them; int64."""
        found = []
        for shard in range(self.store.num_shards):
            counts = self._counts(self.store.document_ends(shard))
            sums = np.add.reduceat(counts, np.arange(0, len(counts), _GROUP)) if len(counts) else counts
            found.append(np.concatenate([[0], np.cumsum(sums)]))
        return found

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The chunks before each shard, then all of them; int64 [shards + 1]."""
        return np.cumsum([0, *(groups[-1] for groups in self._groups)], dtype=np.int64)
