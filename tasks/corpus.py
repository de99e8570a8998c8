"""What every corpus of text has in common: texts that are tokenized and left whole."""

import functools
from collections.abc import Mapping

import seqio

from tasks.vocabularies import byte_vocabulary


def corpus_task(
    name: str,
    source: seqio.DataSource,
    vocabulary: seqio.Vocabulary | None = None,
    texts: Mapping[str, str] = {"targets": "text"},
) -> seqio.Task:
    """Returns an unregistered Task that ends where the corpus ends, ready for any objective.

    Args:
      name: the Task's name, and the name of its directory once it is cached.
      source: yields examples whose `text` is a document.
      vocabulary: bytes unless given.
      texts: what is a text in the source's examples, by the name that it has in the Task's.

    Returns:
      Task of `{"targets": int32 [length], "targets_pretokenized": string []}`, without EOS: the feature says
      that it wants one, and where it goes is for the objective to know.
    """
    feature = seqio.Feature(vocabulary or byte_vocabulary(), add_eos=True)
    return seqio.Task(
        name,
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map=texts),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features=dict.fromkeys(texts, feature),
    )
