"""Fills rows of a fixed length with whole examples, one or several.

SeqIO's packing is next-fit: an example either fits the one open row or closes it. Here a few rows stay
open and each example goes to the fullest that has room (best fit), which fills more of every row. Lengths
are those of the tensors, so an id 0 inside an example is a token like any other.

Both functions give, for each feature, three int32 [row length] of a row: `<feature>` padded with 0,
`<feature>_segment_ids` (1, 2, ... for the examples in the row, 0 on padding; an example has the same
number in every feature) and `<feature>_positions` (from 0 in each segment; 0 on padding).
"""

from collections.abc import Mapping

import tensorflow as tf

Example = dict[str, tf.Tensor]


def pad(examples: Mapping[str, tf.RaggedTensor], lengths: Mapping[str, int]) -> Example:
    """One example a row.

    Args:
        examples: features, int32 [n, (any length up to the row's)] each.
        lengths: row length of each feature; other features are dropped.

    Returns:
        Three int32 [n, row length] for each feature, as above.

    Raises:
        tf.errors.InvalidArgumentError: an example is longer than its row.

    >>> rows = pad({"targets": tf.ragged.constant([[5, 0, 1], [6]])}, {"targets": 4})
    >>> {name: row.numpy().tolist()[0] for name, row in rows.items()}
    {'targets': [5, 0, 1, 0], 'targets_segment_ids': [1, 1, 1, 0], 'targets_positions': [0, 1, 2, 0]}
    """
    rows: Example = {}
    for name, length in lengths.items():
        sizes = examples[name].row_lengths()
        _check_sizes(name, sizes, length)
        rows[name] = examples[name].to_tensor(shape=[None, length])
        segment_ids = tf.sequence_mask(sizes, length, tf.int32)
        rows[f"{name}_segment_ids"] = segment_ids
        rows[f"{name}_positions"] = tf.range(length) * segment_ids
    return rows


def pack(dataset: tf.data.Dataset, lengths: Mapping[str, int], open_rows: int = 16) -> tf.data.Dataset:
    """As many examples a row as fit; an example is never split, and never dropped.

    An example enters a row only if all its features fit. Where no open row has room, the fullest is
    closed and an empty one takes its place. After a finite dataset the open rows follow, part filled.

    Args:
        dataset: examples whose features in `lengths` are int32 [any length up to the row's].
        lengths: row length of each feature; other features are dropped.
        open_rows: how many rows wait for an example that fits. More rows fill better and mix examples
            over a longer stretch of the stream; the state an iterator checkpoint holds grows with them.

    Raises:
        tf.errors.InvalidArgumentError: while iterating, at an example longer than its row.

    >>> examples = tf.ragged.constant([[3, 9, 1], [4, 5, 1], [8, 1]])
    >>> dataset = tf.data.Dataset.from_tensor_slices(examples).map(lambda tokens: {"targets": tokens})
    >>> for row in pack(dataset, {"targets": 5}, open_rows=2).as_numpy_iterator():
    ...     print(row["targets"], row["targets_segment_ids"], row["targets_positions"])
    [3 9 1 8 1] [1 1 1 2 2] [0 1 2 0 1]
    [4 5 1 0 0] [1 1 1 0 0] [0 1 2 0 0]
    """
    capacity = tf.constant(list(lengths.values()))
    empty_rows = (
        tf.zeros([open_rows, sum(lengths.values()), 2], tf.int32),  # (token, segment id) of each cell
        tf.zeros([open_rows, len(lengths)], tf.int32),  # cells in use, by feature
        tf.zeros([open_rows], tf.int32),  # examples in the row
    )

    def place(rows, element):
        """Puts one example in; gives back the rows that closed, [0 or 1 or at the end more, width, 2]."""
        cells, fill, segments = rows
        (tokens, columns, owner, size), at_end = element
        fits = tf.reduce_all(fill + size <= capacity, axis=1)
        used = tf.reduce_max(fill / capacity, axis=1)
        row = tf.argmax(tf.where(fits, used + 2, used))
        closing = tf.where(at_end, segments > 0, ~fits & tf.one_hot(row, open_rows, True, False))
        closed = tf.boolean_mask(cells, closing)

        keep = tf.cast(fits[row], tf.int32)
        start, segment = keep * fill[row], keep * segments[row] + 1
        columns = columns + tf.gather(start, owner)
        entries = tf.stack([tokens, tf.fill(tf.shape(tokens), segment)], axis=-1)
        contents = tf.tensor_scatter_nd_update(keep * cells[row], columns[:, tf.newaxis], entries)
        rows = [
            tf.tensor_scatter_nd_update(old, [[row]], new[tf.newaxis])
            for old, new in ((cells, contents), (fill, start + size), (segments, segment))
        ]
        return tuple(rows), closed

    examples = dataset.map(
        lambda example: (_flatten(example, lengths), False),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    nothing = {name: tf.zeros([0], tf.int32) for name in lengths}
    end = tf.data.Dataset.from_tensors((_flatten(nothing, lengths), True))
    packed = examples.concatenate(end).scan(empty_rows, place).unbatch()
    return packed.map(
        lambda cells: _unflatten(cells, lengths), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _flatten(example: Example, lengths: Mapping[str, int]) -> tuple[tf.Tensor, ...]:
    """All features in one row, end to end.

    Returns:
        int32 tokens [n], the columns they would have in an empty row [n], the index of the feature each
        belongs to [n], and the size of each feature [features].
    """
    tokens, columns, owner, sizes = [], [], [], []
    offset = 0
    for index, (name, length) in enumerate(lengths.items()):
        size = tf.size(example[name])
        _check_sizes(name, size, length)
        tokens.append(example[name])
        columns.append(tf.range(offset, offset + size))
        owner.append(tf.fill([size], index))
        sizes.append(size)
        offset += length
    return tf.concat(tokens, 0), tf.concat(columns, 0), tf.concat(owner, 0), tf.stack(sizes)


def _check_sizes(name: str, sizes: tf.Tensor, length: int) -> None:
    message = f"An example's {name} must be cut to the row length before it is padded or packed"
    tf.debugging.assert_less_equal(sizes, tf.cast(length, sizes.dtype), message=message)


def _unflatten(cells: tf.Tensor, lengths: Mapping[str, int]) -> Example:
    """Splits a row's cells, int32 [width, 2], into the features and says where each segment starts."""
    row: Example = {}
    for name, part in zip(lengths, tf.split(cells, list(lengths.values())), strict=True):
        length = lengths[name]
        tokens, segment_ids = tf.unstack(tf.ensure_shape(part, [length, 2]), axis=-1)
        columns = tf.range(length)
        starts = tf.math.unsorted_segment_min(columns, segment_ids, tf.reduce_max(segment_ids) + 1)
        row[name] = tokens
        row[f"{name}_segment_ids"] = segment_ids
        row[f"{name}_positions"] = tf.where(segment_ids > 0, columns - tf.gather(starts, segment_ids), 0)
    return row
