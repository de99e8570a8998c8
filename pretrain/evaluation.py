"""Evaluation: the loss on a split, and what the text itself says a model should beat."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from pretrain import metrics, mixing, pipeline
from pretrain.data import rows
from pretrain.data import vocabulary as vocabularies
from pretrain.parallel import processes
from pretrain.run import RunConfig
from pretrain.training.state import Params
from pretrain.training.step import EvalStep


class Stopped(Exception):
    """An evaluation was asked to stop before its end."""


def check(run: RunConfig) -> None:
    """Raises InputError if there is nothing to evaluate on; better known before training than after."""
    for part in mixing.held_out(run.objective):
        next(pipeline.batches(run, training=False, part=part))


def evaluate(
    run: RunConfig, eval_step: EvalStep, params: Params, mesh: jax.sharding.Mesh, *,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:  # fmt: skip
    """Figures over `run.eval_batches` batches of its `eval_split` (None: all), the same every time.

    So many of each part, where the parts of a mixture have batches of their own.

    stop: asked after every batch. Raises Stopped when it says so.
    """
    run.check_batch(mesh)
    sums: list[Mapping[str, float]] = []
    running = None  # the device works on this batch while the host reads the sums of the last one
    for batch in held_out(run):
        before, running = running, eval_step(params, pipeline.to_devices(batch, mesh, run.rules))
        if before is not None:
            sums.append(jax.device_get(before))
        if stop():
            raise Stopped
    return metrics.figures(metrics.add([*sums, jax.device_get(running)]), run.objective.added)


def held_out(run: RunConfig) -> Iterator[pipeline.Batch]:
    """This process's batches of an evaluation; all processes get as many, the short ones padding.

    Parts of a mixture that have batches of their own are read one after the other.
    """
    for part in mixing.held_out(run.objective):
        yield from _held_out(run, part)


def _held_out(run: RunConfig, part: int | None) -> Iterator[pipeline.Batch]:
    batches = pipeline.batches(run, training=False, part=part)
    first = next(batches)
    padding = {name: np.zeros_like(value) for name, value in first.items()}
    stream = itertools.islice(itertools.chain([first], batches), run.eval_batches)
    while True:
        batch = next(stream, None)
        if not processes.on_any(batch is not None):
            return
        yield padding if batch is None else batch


def text_entropies(run: RunConfig) -> dict[str, float]:
    """The entropies of the very text an evaluation reads, its targets put back into its inputs."""
    vocabulary = run.vocabulary()
    counts = np.zeros((256, 256), np.int64)
    for batch in held_out(run):
        for example in rows.examples(batch):
            objective = run.objective.parts[int(example["part"])].objective
            inputs, targets = example.get("inputs", ()), example["targets"]
            if objective.bidirectional_prompt:  # whose rows hold the inputs before the targets
                charged = example["weights"] > 0
                inputs, targets = targets[~charged], targets[charged]
            ids = objective.complete(inputs, targets, vocabulary)
            text = np.frombuffer(vocabularies.text_bytes(ids, vocabulary), np.uint8)
            np.add.at(counts, (text[:-1], text[1:]), 1)
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(counts).sum(0)
    return entropies(counts)


def entropies(counts_of_pairs: np.ndarray) -> dict[str, float]:
    """Bits a byte of the best model that sees nothing (unigram) or the byte before (bigram).

    `counts_of_pairs` int [256, 256] counts (byte before, byte). These are the entropies of the very text they
    are compared on, which is more than a model that learnt its counts elsewhere could reach.

    >>> counts = np.zeros((256, 256)); counts[0, 1] = counts[1, 0] = 8
    >>> entropies(counts)
    {'unigram_bits_per_byte': 1.0, 'bigram_bits_per_byte': 0.0}
    """
    total = counts_of_pairs.sum()
    if not total:
        raise ValueError("There are no two bytes of text side by side, so there are no entropies.")
    joint, single = _entropy(counts_of_pairs / total), _entropy(counts_of_pairs.sum(0) / total)
    before = _entropy(counts_of_pairs.sum(1) / total)
    return {"unigram_bits_per_byte": single, "bigram_bits_per_byte": joint - before}


def _entropy(probabilities: np.ndarray) -> float:
    p = probabilities[probabilities > 0]
    return float(-(p * np.log(p)).sum() / math.log(2))
