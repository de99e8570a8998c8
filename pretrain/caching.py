"""Tokenizes a corpus once, into an indexed store.

What is written depends on the corpus alone: not on the number of workers, nor on interruptions.
"""

import dataclasses
import functools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from pretrain import workers
from pretrain.data import reading
from pretrain.data.manifest import (
    FORMAT,
    Manifest,
    Shard,
    Split,
    claim,
    digest,
    finish,
    locked,
    read_json,
    writable,
    write_json,
)
from pretrain.data.store import END, write_shard
from pretrain.data.vocabulary import fingerprint, token_bytes
from pretrain.errors import InputError

BLOCK_TOKENS = 4096  # smaller blocks compress worse and need a larger index, and are read hardly faster
MAX_SHARDS = 256  # so that a reader can keep them all open under the usual limit of 1,024 files
MIN_SHARD_BYTES = 16 * 2**20  # of source: to start on a shard takes as long as to tokenize 1 or 2 MB
_TOKENS_AT_ONCE = 2**16
_SECONDS_BETWEEN_REPORTS = 0.5
_BUILDING = threading.Lock()  # SeqIO keeps the seed of the task that is being built in a global


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A shard to make.

    Attributes:
        directory: of the store.
        settings: what the store is to hold.
        split, index: which shard.
        threads: how many TensorFlow may use to make it.
    """

    directory: Path
    settings: Manifest
    split: str
    index: int
    threads: int

    @property
    def num_shards(self) -> int:
        return self.settings.splits[self.split].num_shards

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.num_shards:05d}"

    @property
    def _sidecar(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def _fingerprint(self) -> str:
        """Of everything that decides what the shard holds."""
        settings = dataclasses.asdict(self.settings) | {"splits": None}
        source = self.settings.splits[self.split].source
        return digest(json.dumps([FORMAT, settings, source, self.name], sort_keys=True).encode())

    def finished(self) -> Shard | None:
        """The shard, if it was made with these settings and its files are there."""
        try:
            content = read_json(self._sidecar)
            if content["settings"] != self._fingerprint:
                return None
            shard = Shard(**content["shard"])
            shard.check_sizes(self.directory)
        except (FileNotFoundError, InputError):
            return None  # so it is made, and what is there replaced
        return shard

    def finish(self, shard: Shard) -> None:
        """Says that the shard is made."""
        with writable(self._sidecar):
            write_json(self._sidecar, {"settings": self._fingerprint, "shard": dataclasses.asdict(shard)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What was added to a shard since the last report, and whether that finished it."""

    documents: int
    tokens: int
    seconds: float
    finished: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the caching is.

    Attributes:
        shards, num_shards: how many are finished, and how many there are.
        documents, num_documents: the same; None where the source does not know.
        new_shards, new_tokens: made by this command.
        seconds: since it began.
        worker_seconds: that the workers took for `new_tokens`, summed over them; 0 for other machines.
    """

    shards: int
    num_shards: int
    documents: int
    num_documents: int | None
    new_shards: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0

    @property
    def done(self) -> tuple[int, int]:
        """How much is done, of how much: documents where their number is known, else shards."""
        if self.num_documents is None:
            return self.shards, self.num_shards
        return min(self.documents, self.num_documents), self.num_documents

    def and_made(self, made: Made, seconds: float) -> "Progress":
        return dataclasses.replace(
            self,
            shards=self.shards + made.finished,
            documents=self.documents + made.documents,
            new_shards=self.new_shards + made.finished,
            new_tokens=self.new_tokens + made.tokens,
            seconds=seconds,
            worker_seconds=self.worker_seconds + made.seconds,
        )


def cache(
    task: seqio.Task,
    directory: Path,
    *,
    splits: Sequence[str],
    identity: Callable[[str], str],
    block_tokens: int = BLOCK_TOKENS,
    num_workers: int = 1,
    start: Callable[[], workers.Work] | None = None,
    elsewhere: Callable[[Sequence[Job]], None] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Manifest, Progress]:
    """Writes a store of a corpus, or what is missing of it.

    Args:
        task: a corpus, which ends at `CacheDatasetPlaceholder`.
        directory: empty, not there yet, or with a store of the same corpus.
        splits: which of its splits.
        identity: of a split's name, what says which documents it has.
        block_tokens: tokens in a block.
        num_workers: how many processes share the work; one does it here.
        start: for several, what `workers.run` calls in each: it returns `maker(task)`.
        elsewhere: has jobs done on other machines, which share the directory, instead of here.
        report: called a few times a second.

    Returns:
        What the store holds, and what this command did for it.

    Raises:
        InputError: the task is no corpus, or the directory holds something else, cannot be written to, or is
            not the one that `elsewhere` wrote to.
    """
    _check_corpus(task, splits)
    wanted = settings_of(task, {split: identity(split) for split in splits}, block_tokens)
    with locked(directory):
        claim(directory, wanted)
        jobs = _jobs(directory, wanted, num_workers)
        finished = [job.finished() for job in jobs]
        todo = [job for job, shard in zip(jobs, finished, strict=True) if not shard]
        progress = _begin(task, wanted, [shard for shard in finished if shard])
        began = time.monotonic()

        def receive(made: Made) -> None:
            nonlocal progress
            progress = progress.and_made(made, time.monotonic() - began)
            report(progress)

        report(progress)
        # To start a process takes longer than to make the only shard of a small split.
        count = min(num_workers, len(todo), max(split.num_shards for split in wanted.splits.values()))
        if elsewhere and todo:
            elsewhere(todo)
            for made in map(_made_elsewhere, todo):
                progress = progress.and_made(made, time.monotonic() - began)
            report(progress)
        elif start and count > 1:
            workers.run(todo, start, count, receive)
        elif todo:
            make = maker(task)
            for job in todo:
                make(job, receive)
        return finish(directory, _with_shards(wanted, jobs)), progress


def _made_elsewhere(job: Job) -> Made:
    shard = job.finished()
    if shard is None:
        raise InputError(
            f"A worker made {job.name}, and {job.directory} does not have it: take an --out that is the same "
            "directory on all machines, or, if it is, run the same `pretrain cache` again."
        )
    return Made(documents=shard.documents, tokens=shard.tokens, seconds=0.0, finished=True)


def _with_shards(settings: Manifest, jobs: Sequence[Job]) -> Manifest:
    """What the store holds now that all jobs are done."""
    shards: dict[str, list[Shard]] = {name: [] for name in settings.splits}
    for job in jobs:
        shard = job.finished()
        assert shard, job.name
        shards[job.split].append(shard)
    splits = {
        name: dataclasses.replace(split, shards=tuple(shards[name]))
        for name, split in settings.splits.items()
    }
    return dataclasses.replace(settings, splits=splits)


def maker(task: seqio.Task) -> workers.Work:
    """A function that makes the shard of a `Job`, and reports `Made`."""
    return functools.partial(_make, task, token_bytes(task.output_features["targets"].vocabulary))


def _make(task: seqio.Task, bytes_of: np.ndarray, job: Job, report: Callable[[Made], None]) -> None:
    if job.finished():
        return  # Beam does all jobs of a worker again when it loses it
    documents = tokens = 0
    since = time.monotonic()

    def made(finished: bool) -> Made:
        seconds = time.monotonic() - since
        return Made(documents=documents, tokens=tokens, seconds=seconds, finished=finished)

    def counted() -> Iterator[np.ndarray]:
        nonlocal documents, tokens, since
        for piece in _stream(task, job):
            yield piece
            ends = int(np.count_nonzero(piece == END))
            documents, tokens = documents + ends, tokens + len(piece) - ends
            if time.monotonic() - since > _SECONDS_BETWEEN_REPORTS:
                report(made(finished=False))
                documents, tokens, since = 0, 0, time.monotonic()

    job.finish(write_shard(job.directory, job.name, job.settings, bytes_of, counted()))
    report(made(finished=True))


def _stream(task: seqio.Task, job: Job) -> Iterator[np.ndarray]:
    """The documents of a shard end to end, END after each, int32 [n]."""
    with _BUILDING:
        dataset = task.get_dataset(
            sequence_length=None,
            split=job.split,
            shuffle=False,
            seed=0,
            shard_info=seqio.ShardInfo(job.index, job.num_shards),
            num_epochs=1,
            use_cached=False,
            try_in_mem_cache=False,
        )
    options = reading.options()
    options.threading.private_threadpool_size = job.threads
    # Large pieces, however short the documents, since Python takes its time for each.
    ended = dataset.map(lambda example: tf.concat([example["targets"], [END]], axis=0))
    pieces = ended.rebatch(_TOKENS_AT_ONCE).prefetch(2).with_options(options)
    yield from pieces.as_numpy_iterator()


def _check_corpus(task: seqio.Task, splits: Sequence[str]) -> None:
    """Raises InputError unless the task is a corpus with these splits."""
    feature = task.output_features.get("targets")
    if feature is None or feature.dtype != tf.int32 or feature.rank != 1:
        raise InputError(
            f"Task {task.name!r} has no feature 'targets' of int32 and rank 1, a document's tokens: cache a "
            "corpus that has one."
        )
    last = task.preprocessors[-1] if task.preprocessors else None
    if task.supports_caching and not isinstance(last, seqio.CacheDatasetPlaceholder):
        raise InputError(
            f"Task {task.name!r} goes on after CacheDatasetPlaceholder, so it is a corpus with an objective: "
            "cache the corpus, a task that ends there."
        )
    for split in splits:
        if split not in task.splits:
            raise InputError(
                f"Task {task.name!r} has no split {split!r}: give --splits some of {','.join(task.splits)}."
            )
        if not re.fullmatch(r"[\w.+-]+", split):
            raise InputError(f"The split {split!r} cannot name a file: leave it out with --splits.")


def settings_of(task: seqio.Task, sources: Mapping[str, str], block_tokens: int) -> Manifest:
    """What a store of a corpus is to hold; `sources` has its splits, and what each is read from."""
    vocabulary = task.output_features["targets"].vocabulary
    return Manifest(
        task=task.name,
        vocabulary=fingerprint(vocabulary),
        vocab_size=vocabulary.vocab_size,
        block_tokens=block_tokens,
        splits={
            split: Split(source=sources[split], num_shards=num_shards(task.source, split))
            for split in task.splits
            if split in sources
        },
    )


def num_shards(source: seqio.DataSource, split: str) -> int:
    """In how many shards a split is cached: a function of the source alone.

    As many as it has files, but at most MAX_SHARDS, and so few that each has MIN_SHARD_BYTES of source where
    the files can be measured.
    """
    files = source.list_shards(split)
    most, size = max(1, min(len(files), MAX_SHARDS)), 0
    for file in files:
        if not tf.io.gfile.exists(file):
            return most
        size += tf.io.gfile.stat(file).length
        if size >= most * MIN_SHARD_BYTES:
            return most
    return max(1, size // MIN_SHARD_BYTES)


def _jobs(directory: Path, settings: Manifest, num_workers: int) -> list[Job]:
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    directory = directory.absolute()  # another process may be in another working directory
    return [
        Job(directory=directory, settings=settings, split=split, index=index, threads=threads)
        for split, holds in settings.splits.items()
        for index in range(holds.num_shards)
    ]


def _begin(task: seqio.Task, wanted: Manifest, finished: Sequence[Shard]) -> Progress:
    counts = [task.num_input_examples(split) for split in wanted.splits]
    return Progress(
        shards=len(finished),
        num_shards=sum(split.num_shards for split in wanted.splits.values()),
        documents=sum(shard.documents for shard in finished),
        num_documents=sum(count or 0 for count in counts) if all(counts) else None,
    )
