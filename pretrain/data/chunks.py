"""From documents of any length to chunks of a known one."""

import tensorflow as tf


def cut_documents(dataset: tf.data.Dataset, length: int, join: bool, feature: str = "targets"):
    """Cuts a stream of documents into chunks of at most `length` tokens; no token is lost or repeated.

    Args:
        dataset: examples with `feature`, [tokens] of any length; other features are dropped.
        length: tokens in a full chunk.
        join: True puts the documents end to end first, so every chunk is full but the last one of a
            finite dataset; False cuts each document on its own and keeps its short last piece.
        feature: the feature to cut.

    Returns:
        A dataset of {feature: [tokens]}, without empty chunks.

    >>> documents = tf.data.Dataset.from_tensor_slices({"targets": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]})
    >>> [chunk["targets"].numpy().tolist() for chunk in cut_documents(documents, length=3, join=True)]
    [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]
    >>> [chunk["targets"].numpy().tolist() for chunk in cut_documents(documents, length=3, join=False)]
    [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]]
    """

    def pieces(document: dict[str, tf.Tensor]) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(document).rebatch(length)

    dataset = dataset.map(lambda example: {feature: example[feature]})  # which calls nothing
    return dataset.rebatch(length) if join else dataset.flat_map(pieces)
