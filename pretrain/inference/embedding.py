"""Texts to vectors, by a dual encoder."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from pretrain import pipeline
from pretrain.data.vocabulary import Ids
from pretrain.errors import InputError
from pretrain.models.dual_encoder import Side
from pretrain.run import RunConfig
from pretrain.training import state

FEATURES = {"left": "inputs", "right": "targets"}  # that each side read in training


def embed_tokens(
    run: RunConfig, params: state.Params, mesh: jax.sharding.Mesh, texts: Sequence[Ids], side: Side = "left"
) -> np.ndarray:
    """The vectors of texts, float32 [texts, E], each of length 1; call it under `sharding.layout`.

    Args:
        texts: token ids without EOS, at least one each; what has no room in a row of `side` is left out.
        side: whose encoder reads them; a model that shares one has the same vectors for both.

    Raises:
        InputError: the model makes no vectors.
    """
    compare = [n for n, part in enumerate(run.objective.parts) if part.objective.family == "dual_encoder"]
    if not compare:
        raise InputError(
            f"The model is of the {run.model.family} family, which makes no vectors of texts: train one with "
            "the objective Contrastive."
        )
    graph = state.graph(run.model)
    program = jax.jit(lambda params, batch: nnx.merge(graph, params).embed(batch, side))
    length, end = run.lengths_of(compare[0])[FEATURES[side]], _end(run, compare[0], side)
    found = []
    for first in range(0, len(texts), run.batch_size):
        some = [[*text[: length - len(end)], *end] for text in texts[first : first + run.batch_size]]
        batch = pipeline.to_devices(_rows(some, run.batch_size, length, side), mesh, run.rules)
        found.append(jax.device_get(program(params, batch))[: len(some)])
    return np.concatenate(found)


def _end(run: RunConfig, part: int, side: Side) -> list[int]:
    """EOS, where the texts of `side` ended in it in training."""
    objective, corpus = run.objective.parts[part].objective, run.corpora()[part]
    feature = objective.output_features(corpus.output_features)[FEATURES[side]]
    return [feature.vocabulary.eos_id] if feature.add_eos else []


def _rows(texts: Sequence[Ids], rows: int, length: int, side: Side) -> pipeline.Batch:
    """What the converter makes of texts, one to a row; further rows are padding."""
    tokens, real = np.zeros((2, rows, length), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], real[row, : len(text)] = text, 1
    positions = real * np.arange(length, dtype=np.int32)
    names: dict[str, np.ndarray] = {"input_tokens": tokens, "segment_ids": real, "positions": positions}
    return {f"{side}_encoder_{name}": each for name, each in names.items()}
