"""Many examples in one call of tf.data.

A call of a function costs some 40 microseconds, whatever it does: as much as the noise of hundreds of tokens,
and twenty times or more what it costs to batch an example and take the batch apart. Examples come out as
they would one by one, in the same order, for any size of a group.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

_MOST, _TOKENS = 64, 32768


def size(tokens: int) -> int:
    """How many examples of so many tokens make a group: no more than are soon made and held in memory.

    >>> size(626), size(131_072)
    (52, 1)
    """
    return max(1, min(_MOST, _TOKENS // tokens))


def each(groups: tf.data.Dataset, function: Callable[..., Mapping[str, Any]]) -> tf.data.Dataset:
    """The examples that `function` makes of each group, one by one.

    Args:
        groups: of tensors [n, ...], ragged ones too.
        function: returns features [m, ...] each, dense or ragged, of as many examples; autograph, which
            takes longer than the rest of a graph, does not convert it.
    """
    function = tf.autograph.experimental.do_not_convert(function)
    made = groups.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).unbatch()
    return made.map(lambda example: example)  # as tensors, never ragged, which costs nothing


def ragged(group: Mapping[str, tf.Tensor | tf.RaggedTensor]) -> dict[str, tf.RaggedTensor]:
    """The features of `ragged_batch`, which makes tensors of those that have one length in every example."""
    return {
        name: tokens if isinstance(tokens, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(tokens)
        for name, tokens in group.items()
    }
