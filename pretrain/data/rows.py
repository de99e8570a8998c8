"""From the rows a model reads back to the examples that were packed into them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def side(batch: Mapping[str, Any]) -> str:
    """The stack that predicts: "decoder", or "encoder" where there is no decoder."""
    return "decoder" if "decoder_target_tokens" in batch else "encoder"


def predicts(batch: Mapping[str, Any]) -> bool:
    """Whether tokens are predicted; pairs of texts are only compared."""
    return f"{side(batch)}_target_tokens" in batch


def scored(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """What is predicted, and what each prediction counts: [batch, length] target tokens and loss weights."""
    return batch[f"{side(batch)}_target_tokens"], batch[f"{side(batch)}_loss_weights"]


def part_ids(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """The number of the part of a mixture that each target is of, [batch, length], or nothing."""
    name = f"{side(batch)}_part_ids"
    return (batch[name],) if name in batch else ()


def real(batch: Mapping[str, Any]) -> Any:
    """Which rows hold something, bool [batch]; the last batch of a split may end in rows of padding."""
    segments = [value for name, value in sorted(batch.items()) if name.endswith("_segment_ids")]
    return segments[0].max(axis=1) > 0


def of_part(number: int, name: str) -> str:
    """What a feature of a part is called in batches where each part has features of its own.

    >>> of_part(1, "encoder_positions")
    '1/encoder_positions'
    """
    return f"{number}/{name}"


def by_part(batch: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The features of each part in the batch, in order; of a batch that all parts share, all are part 0's.

    >>> by_part({"10/tokens": "x", "2/tokens": "y", "2/weights": "z"})
    {2: {'tokens': 'y', 'weights': 'z'}, 10: {'tokens': 'x'}}
    """
    found: dict[int, dict[str, Any]] = {}
    for name in sorted(batch):
        number, slash, feature = name.partition("/")
        own = found.setdefault(int(number) if slash else 0, {})
        own[feature if slash else name] = batch[name]
    return {number: found[number] for number in sorted(found)}


def examples(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Every example of a batch, in row order: "targets", "weights", "part", and "inputs" with an encoder and
    "order" where there is one.

    The part, of a mixture, is one number, and 0 where there is none.

    Each is [tokens of the example], without padding. A decoder's prefix has weight 0 and is in the targets.

    >>> batch = {"decoder_target_tokens": np.array([[5, 1, 6, 1, 0]]),
    ...          "decoder_loss_weights": np.array([[1.0, 1, 1, 1, 0]]),
    ...          "decoder_segment_ids": np.array([[1, 1, 2, 2, 0]])}
    >>> [example["targets"].tolist() for example in examples(batch)]
    [[5, 1], [6, 1]]
    """
    if any("/" in name for name in batch):
        for number, own in by_part(batch).items():
            yield from (example | {"part": np.array(number)} for example in examples(own))
        return
    if not predicts(batch):
        yield from _pairs(batch)
        return
    targets, weights = scored(batch)
    for row, segments in enumerate(batch[f"{side(batch)}_segment_ids"]):
        for segment in range(1, segments.max(initial=0) + 1):
            own = segments == segment
            example = {
                "targets": targets[row][own],
                "weights": weights[row][own],
                "part": np.max([ids[row][0] for ids in part_ids(batch)], initial=0),
            }
            if "encoder_segment_ids" in batch:
                example["inputs"] = batch["encoder_input_tokens"][row][
                    batch["encoder_segment_ids"][row] == segment
                ]
            if "encoder_order" in batch:
                example["order"] = batch["encoder_order"][row][own]
            yield example


def _pairs(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    sides = ("left_encoder", "right_encoder")
    tokens, real = ([batch[f"{each}_{name}"] for each in sides] for name in ("input_tokens", "segment_ids"))
    for row in np.flatnonzero(real[0].max(axis=1)):
        left, right = (x[row][own[row] > 0] for x, own in zip(tokens, real, strict=True))
        weights = np.ones(len(right), np.float32)
        yield {"targets": right, "weights": weights, "part": np.zeros((), np.int64), "inputs": left}
