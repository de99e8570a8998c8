"""What a model makes of held-out examples, beside the truth."""

import dataclasses

import jax
import numpy as np

from pretrain import evaluation
from pretrain.data import rows
from pretrain.data import vocabulary as vocabularies
from pretrain.inference.generate import generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.run import RunConfig
from pretrain.training.state import Params

# Greedy small models repeat themselves, most of all in white space; a seed makes the draws the same ones.
SAMPLING = Sampling(temperature=0.8, top_p=0.9)


@dataclasses.dataclass(frozen=True)
class Filled:
    """prompt: what the model saw; output: what it said (sampled); truth: what was there."""

    prompt: str
    output: str
    truth: str


def filled_examples(run: RunConfig, params: Params, mesh: jax.sharding.Mesh, number: int) -> list[Filled]:
    """`number` held-out examples, evenly spread over those an evaluation reads; call it under a layout."""
    vocabulary = run.vocabulary()
    examples = [e for batch in evaluation.held_out(run) for e in rows.examples(batch) if _has_both(e)]
    spread = [
        examples[(2 * i + 1) * len(examples) // (2 * number)] for i in range(min(number, len(examples)))
    ]
    if not spread:
        return []
    pairs = [_prompt_and_truth(example) for example in spread]
    outputs = generate_tokens(run, params, mesh, [prompt for prompt, _ in pairs], sampling=SAMPLING)
    if run.model.family == "decoder":  # it would go on to the end of its row
        outputs = [output[: len(truth)] for output, (_, truth) in zip(outputs, pairs, strict=True)]
    return [
        Filled(*(vocabularies.readable(ids, vocabulary) for ids in (prompt, output, truth)))
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
