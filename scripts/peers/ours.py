"""Our train step: python ours.py encoder_decoder|decoder [MODEL_FIELD=VALUE ...]"""

import json
import sys

import jax
import numpy as np
from job import LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape, serve

from pretrain import optim
from pretrain.benchmarks.steps import BareSteps
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.objectives.causal_lm import CausalLM
from pretrain.objectives.span_corruption import SpanCorruption
from pretrain.run import RunConfig
from tasks import python_stdlib


def run_of(family: str, shape: Shape, fields: dict) -> RunConfig:
    sizes = {
        "vocab_size": shape.vocab, "embed_dim": shape.embed, "num_heads": shape.heads,
        "head_dim": shape.head_dim, "mlp_dim": shape.mlp, **fields,
    }  # fmt: skip
    if family == "decoder":
        model = DecoderConfig(num_layers=shape.layers, **sizes)
        lengths = {"targets": shape.targets}
    else:
        model = EncoderDecoderConfig(encoder_layers=shape.layers, decoder_layers=shape.layers, **sizes)
        lengths = {"inputs": shape.inputs, "targets": shape.targets}
    return RunConfig(
        task=python_stdlib.task(),
        objective=CausalLM() if family == "decoder" else SpanCorruption(),
        model=model,
        optimizer=optim.AdamW(
            schedule=optim.Constant(peak=LEARNING_RATE), weight_decay=WEIGHT_DECAY, clip_norm=None
        ),
        lengths=lengths,
        steps=1,
        batch_size=shape.batch,
    )


def batch_of(family: str, shape: Shape) -> dict[str, np.ndarray]:
    def rows(part: str, length: int) -> dict[str, np.ndarray]:
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), (shape.batch, length))
        return {f"{part}_segment_ids": np.ones_like(positions), f"{part}_positions": positions}

    targets = shape.ids(shape.targets).astype(np.int32)
    batch = {
        **rows("decoder", shape.targets),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }
    if family == "decoder":
        return batch
    inputs = shape.ids(shape.inputs).astype(np.int32)
    return {**batch, **rows("encoder", shape.inputs), "encoder_input_tokens": inputs}


def main(family: str, *fields: str) -> None:
    shape = SHAPES[family]
    given = {name: json.loads(value) for name, _, value in (field.partition("=") for field in fields)}
    run = run_of(family, shape, given)
    mesh = run.mesh.build()
    steps = BareSteps(run, mesh, batch_of(family, shape))
    abstract = jax.eval_shape(lambda key: run.model.build(key), jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    serve(
        parameters,
        lambda: steps.round(1),
        steps.compile_seconds,
        3 * shape.batch * run.model.flops(run.lengths),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
