"""The rows of a mixture's parts in one stream: whose turn it is, and what a row says of whose it is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from pretrain.data import groups, rows
from pretrain.data.hashing import mixed
from pretrain.data.order import Mix, Schedule
from pretrain.objectives.base import Objective, Part

Specs = dict[str, tuple[int, tf.DType]]  # length and type of features


def of_rows(parts: Sequence[Part], batch: int, rates: Sequence[float] = (1.0,)) -> Schedule:
    """Whose turn each row is; a step has `batch` of them.

    rates: of what each part reads, if that is several things: each of the first part, then of the second, ...
    """
    steps = sorted({step for part in parts for step, _ in part.rates})
    mixes = [Mix([part.rate_at(step) * rate for part in parts for rate in rates]) for step in steps]
    return Schedule([step * batch for step in steps], mixes)


def of_batches(parts: Sequence[Part]) -> Schedule:
    """Whose turn each step is, where a step is of one part."""
    return of_rows(parts, batch=1)


def evenly(parts: int) -> Schedule:
    return Schedule([0], [Mix([1.0] * parts)])


def seed(objective: Objective, number: int, of_run: int) -> int:
    """Of the order in which a part reads its corpus.

    Parts that read one corpus read it in orders of their own, or in the same one if their losses are added.
    """
    own = number and objective.mixes != "losses"
    return int(mixed(of_run, number)[0] % 2**32) if own else of_run


def identity(objective: Objective, lengths: Mapping[str, int], corpora: Sequence[str]) -> dict[str, str]:
    """What decides the rows of a mixture, beside what its parts read: which they are, and their rates.

    corpora: the name of what each part reads.
    """
    parts = objective.parts
    if len(parts) == 1:
        return {}
    said = [
        (part.called, corpus, repr(part.objective), list(part.rates), part.weight, sorted(own.items()))
        for part, corpus, own in zip(parts, corpora, _lengths(objective, lengths), strict=True)
    ]
    digest = hashlib.blake2b(repr((objective.mixes, said)).encode(), digest_size=8).hexdigest()
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


def _lengths(objective: Objective, lengths: Mapping[str, int]) -> list[Mapping[str, int]]:
    """The row lengths of each part."""
    return [objective.lengths_of(number, lengths) for number in range(len(objective.parts))]


def features(objective: Objective, lengths: Mapping[str, int], pack: bool) -> Specs:
    """The length and type of each feature of the batches: of every part's, where each has its own."""
    found: Specs = {}
    parts = zip(objective.parts, _lengths(objective, lengths), strict=True)
    for number, (part, own) in enumerate(parts):
        converter = part.objective.converter(pack)
        for name, length in converter.get_model_feature_lengths(own).items():
            called = name if shares(objective) else rows.of_part(number, name)
            found[called] = (length, converter.MODEL_FEATURES[name].dtype)
    if shares(objective) and len(objective.parts) > 1:
        found[_part_ids(found)] = (found[_weights(found)][0], tf.int32)
    return found


def shares(objective: Objective) -> bool:
    """Whether all parts have the same features, and share batches."""
    return objective.mixes == "rows"


def held_out(objective: Objective) -> Sequence[int | None]:
    """The parts that an evaluation reads one after the other; None is all of them, in batches they share."""
    return [None] if shares(objective) else range(len(objective.parts))


def _weights(names: Iterable[str]) -> str:
    (name,) = (name for name in names if name.endswith("_loss_weights"))
    return name


def _part_ids(names: Iterable[str]) -> str:
    return _weights(names).replace("_loss_weights", "_part_ids")


def marked(
    made: tf.data.Dataset, objective: Objective, number: int, lengths: Mapping[str, int], pack: bool
) -> tf.data.Dataset:
    """The rows of a part with every feature of the mixture; what the part has not is zero.

    Args:
        made: rows with features [length] each.
        number: of the part, which its rows carry; its weight is a factor of its loss weights.
    """
    if len(objective.parts) == 1:
        return made
    wanted, weight = features(objective, lengths, pack), objective.parts[number].weight

    def mark(group: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = tf.shape(next(iter(group.values())))[0]
        whole = {
            name: group.get(name, tf.zeros([size, length], dtype)) for name, (length, dtype) in wanted.items()
        }
        whole[_weights(wanted)] *= weight
        whole[_part_ids(wanted)] = tf.fill([size, wanted[_part_ids(wanted)][0]], number)
        return whole

    return groups.each(made.batch(groups.size(sum(lengths.values()))), mark)


def named(batches: tf.data.Dataset, number: int, wanted: Specs | None = None) -> tf.data.Dataset:
    """Batches of a part, where each has batches of its own, with features called as in the mixture's.

    batches: features [rows, length].
    wanted: `features` of the mixture, to have them all, those of other parts [rows, 0]: `present` drops them.
    """

    def name(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = tf.shape(next(iter(batch.values())))[0]
        others = {name: tf.zeros([size, 0], dtype) for name, (_, dtype) in (wanted or {}).items()}
        return others | {rows.of_part(number, name): value for name, value in batch.items()}

    return batches.map(name)


def in_turns(parts: Sequence[tf.data.Dataset], turns: tf.data.Dataset, wanted: Specs) -> tf.data.Dataset:
    """A batch of one part after the other; turns: the part of each step, int64."""
    whole = [named(batches, number, wanted) for number, batches in enumerate(parts)]
    return tf.data.Dataset.choose_from_datasets(whole, turns)


def together(parts: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    """A batch of each part a step."""
    each = tuple(named(batches, number) for number, batches in enumerate(parts))
    return tf.data.Dataset.zip(each).map(lambda *own: {n: x for batch in own for n, x in batch.items()})


def present(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The features of the part whose batch it is, where others are of no length."""
    return {name: value for name, value in batch.items() if value.shape[1]}
