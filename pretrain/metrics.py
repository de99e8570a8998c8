"""From sums over tokens to the figures people read. Division happens here, once, on the host."""

import math
from collections.abc import Iterable, Mapping


def add(totals: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums of sums, name by name.

    >>> add([{"nll": 1.0, "weight": 2.0}, {"nll": 3.0, "weight": 2.0}])
    {'nll': 4.0, 'weight': 4.0}
    """
    result: dict[str, float] = {}
    for sums in totals:
        for name, value in sums.items():
            result[name] = result.get(name, 0.0) + float(value)
    return result


def figures(sums: Mapping[str, float], added: Mapping[str, float] | None = None) -> dict[str, float]:
    """Means a token from sums: loss (nats), accuracy, perplexity, bits_per_byte.

    A mixture whose parts have batches of their own has no bytes, and no perplexity: its loss is of things
    that differ.

    added: the weights of a mixture's parts, by name, if its loss is the sum of theirs.

    Perplexity is the exponential of the mean loss, computed once over everything. Bits per byte spreads the
    loss of all targets (sentinels and EOS too) over the bytes of text they stand for.

    >>> figures({"nll": 2.0, "correct": 1.0, "weight": 4.0, "bytes": 2.0})
    {'loss': 0.5, 'accuracy': 0.25, 'perplexity': 1.6487212707001282, 'bits_per_byte': 1.4426950408889634}
    """
    weight = sums["weight"]
    if not weight:
        raise ValueError("These batches have no target tokens, so there is no mean loss.")
    loss = sums["nll"] / weight
    result = {"loss": loss, "accuracy": sums["correct"] / weight}
    rows = {key.removeprefix("rows/"): value for key, value in sums.items() if key.startswith("rows/")}
    if sums["bytes"] or not rows:
        result["perplexity"] = math.exp(loss) if loss < 700 else math.inf
    if sums["bytes"]:
        result["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
    for name, number in rows.items():
        # Of each part of a mixture; one that had no row in these batches has no mean.
        result[f"rate/{name}"] = number / sum(rows.values())
        if part := sums[f"weight/{name}"]:
            result[f"loss/{name}"] = sums[f"nll/{name}"] / part
            result[f"accuracy/{name}"] = sums[f"correct/{name}"] / part
            result[f"tokens/{name}"] = part
    if added is not None:
        # A part may have had no target in so few batches.
        result["loss"] = math.fsum(factor * result.get(f"loss/{name}", 0.0) for name, factor in added.items())
    elif sums.get("z_loss"):
        result["z_loss"] = sums["z_loss"] / weight
    return result
