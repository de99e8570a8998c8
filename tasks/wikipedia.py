"""The articles of Wikipedia, from TFDS."""

import functools

import seqio

from tasks.corpus import corpus_task
from tasks.sources import PreparedTfdsDataSource, installed


def task(
    *, vocabulary: seqio.Vocabulary | None = None, tfds_name: str = "wikipedia/20230601.en:1.0.0"
) -> seqio.Task:
    """Returns the Task `wikipedia_en`, with the splits train and validation.

    TFDS has one split, its articles in random order: the last hundredth of it is for validation. To make it
    takes a cluster: TFDS must hold it already, in the TFDS data directory, when it is first used.

    Args:
      vocabulary: bytes unless given.
      tfds_name: another date or language of `wikipedia`, as `wikipedia/config:version`.
    """
    source = PreparedTfdsDataSource(
        functools.partial(installed, tfds_name), splits={"train": "train[:99%]", "validation": "train[99%:]"}
    )
    return corpus_task("wikipedia_en", source, vocabulary)


seqio.TaskRegistry.add_provider("wikipedia_en", task())
