"""What a model makes of held-out examples, beside the truth."""

import dataclasses
import itertools

import jax
import numpy as np

from pretrain import evaluation
from pretrain.data import rows
from pretrain.data import vocabulary as vocabularies
from pretrain.inference.generate import generate_tokens
from pretrain.run import RunConfig
from pretrain.training.state import Params


@dataclasses.dataclass(frozen=True)
class Filled:
    """prompt: what the model saw; output: what it said (greedy); truth: what was there."""

    prompt: str
    output: str
    truth: str


def filled_examples(run: RunConfig, params: Params, mesh: jax.sharding.Mesh, number: int) -> list[Filled]:
    """The first `number` held-out examples, spread over the rows; call it under `sharding.layout`."""
    vocabulary = run.vocabulary()
    examples = list(
        itertools.islice(
            (e for batch in evaluation.held_out(run) for e in rows.examples(batch) if _has_both(e)),
            16 * number,
        )
    )[::16]
    pairs = [_prompt_and_truth(example) for example in examples]
    outputs = generate_tokens(run, params, mesh, [prompt for prompt, _ in pairs])
    return [
        Filled(*(vocabularies.readable(ids, vocabulary) for ids in (prompt, output[: len(truth)], truth)))
        for (prompt, truth), output in zip(pairs, outputs, strict=True)
    ]


def _prompt_and_truth(example: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A decoder's prompt is the part without loss, or the first half where all has loss."""
    if "inputs" in example:
        return example["inputs"], example["targets"]
    targets, weights = example["targets"], example["weights"]
    cut = int((weights == 0).sum()) or len(targets) // 2
    return targets[:cut], targets[cut:]


def _has_both(example: dict[str, np.ndarray]) -> bool:
    return all(len(part) > 0 for part in _prompt_and_truth(example))
