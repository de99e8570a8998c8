"""The rows of a mixture's parts in one stream: whose turn it is, and what a row says of whose it is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from pretrain.data import groups
from pretrain.data.order import Mix, Schedule
from pretrain.objectives.base import Part


def of_rows(parts: Sequence[Part], batch: int, rates: Sequence[float] = (1.0,)) -> Schedule:
    """Whose turn each row is; a step has `batch` of them.

    rates: of what each part reads, if that is several things: each of the first part, then of the second, ...
    """
    steps = sorted({step for part in parts for step, _ in part.rates})
    mixes = [Mix([part.rate_at(step) * rate for part in parts for rate in rates]) for step in steps]
    return Schedule([step * batch for step in steps], mixes)


def evenly(parts: int) -> Schedule:
    return Schedule([0], [Mix([1.0] * parts)])


def identity(parts: Sequence[Part]) -> dict[str, str]:
    """What decides the rows of a mixture, beside what its parts read: which they are, and their rates."""
    if len(parts) == 1:
        return {}
    said = [(part.called, repr(part.objective), list(part.rates), part.weight) for part in parts]
    digest = hashlib.blake2b(repr(said).encode(), digest_size=8).hexdigest()
    return {"the parts of the mixture, with their rates": digest}


def choices(schedule: Schedule) -> tf.data.Dataset:
    """The part of each row, int64, without end, as a dataset whose position can be saved."""
    size = 64
    starts = tf.constant(schedule.starts, tf.int64)
    tables = tf.constant(np.stack([mix.stores for mix in schedule.mixes]))

    def some(number: tf.Tensor) -> tf.Tensor:
        positions = number * size + tf.range(size, dtype=tf.int64)
        stretch = tf.searchsorted(starts, positions, side="right") - 1
        within = (positions - tf.gather(starts, stretch)) % Mix.PERIOD
        return tf.gather_nd(tables, tf.stack([tf.cast(stretch, tf.int64), within], axis=1))

    return tf.data.Dataset.range(np.iinfo(np.int64).max // size).map(some).unbatch()


def features(
    parts: Sequence[Part], lengths: Mapping[str, int], pack: bool
) -> dict[str, tuple[int, tf.DType]]:
    """The length and type of each feature of the rows: what any part has and, of several, whose they are."""
    found: dict[str, tuple[int, tf.DType]] = {}
    for part in parts:
        converter = part.objective.converter(pack)
        for name, length in converter.get_model_feature_lengths(lengths).items():
            found[name] = (length, converter.MODEL_FEATURES[name].dtype)
    if len(parts) > 1:
        found[_part_ids(found)] = (found[_weights(found)][0], tf.int32)
    return found


def _weights(names: Iterable[str]) -> str:
    (name,) = (name for name in names if name.endswith("_loss_weights"))
    return name


def _part_ids(names: Iterable[str]) -> str:
    return _weights(names).replace("_loss_weights", "_part_ids")


def marked(
    rows: tf.data.Dataset, parts: Sequence[Part], number: int, lengths: Mapping[str, int], pack: bool
) -> tf.data.Dataset:
    """The rows of a part with every feature of the mixture; what the part has not is zero.

    Args:
        rows: features [length] each.
        number: of the part, which its rows carry; its weight is a factor of its loss weights.
    """
    if len(parts) == 1:
        return rows
    wanted, weight = features(parts, lengths, pack), parts[number].weight

    def mark(group: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = tf.shape(next(iter(group.values())))[0]
        whole = {
            name: group.get(name, tf.zeros([size, length], dtype)) for name, (length, dtype) in wanted.items()
        }
        whole[_weights(wanted)] *= weight
        whole[_part_ids(wanted)] = tf.fill([size, wanted[_part_ids(wanted)][0]], number)
        return whole

    return groups.each(rows.batch(groups.size(sum(lengths.values()))), mark)
