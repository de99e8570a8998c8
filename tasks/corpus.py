"""What every corpus of text has in common: one feature, `targets`, tokenized and left whole."""

import functools

import seqio

from tasks.vocabularies import byte_vocabulary


def corpus_task(
    name: str, source: seqio.DataSource, vocabulary: seqio.Vocabulary | None = None
) -> seqio.Task:
    """Returns an unregistered Task that ends where the corpus ends, ready for any objective.

    Args:
      name: the Task's name, and the name of its directory once it is cached.
      source: yields examples whose `text` is a document.
      vocabulary: bytes unless given.

    Returns:
      Task of `{"targets": int32 [length], "targets_pretokenized": string []}`, without EOS: the feature says
      that it wants one, and where it goes is for the objective to know.
    """
    return seqio.Task(
        name,
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"targets": seqio.Feature(vocabulary or byte_vocabulary(), add_eos=True)},
    )
