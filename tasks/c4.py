"""C4, the Colossal Clean Crawled Corpus of T5 (https://arxiv.org/abs/1910.10683), from TFDS."""

import functools

import seqio

from tasks.corpus import corpus_task
from tasks.sources import PreparedTfdsDataSource, installed


def task(*, vocabulary: seqio.Vocabulary | None = None, tfds_name: str = "c4/en:3.1.0") -> seqio.Task:
    """Returns the Task `c4_en`, with the splits train and validation.

    To make C4 takes a cluster: TFDS must hold it already, in the TFDS data directory, when it is first used.

    Args:
      vocabulary: bytes unless given.
      tfds_name: another version or config of `c4`, as `c4/config:version`.
    """
    source = PreparedTfdsDataSource(
        functools.partial(installed, tfds_name), splits={"train": "train", "validation": "validation"}
    )
    return corpus_task("c4_en", source, vocabulary)


seqio.TaskRegistry.add_provider("c4_en", task())
