"""Vectors of texts are those that the model made of the same texts in training."""

import numpy as np
import pytest
from flax import nnx

from pretrain import config, evaluation
from pretrain.data import rows
from pretrain.errors import InputError
from pretrain.inference.embedding import embed_tokens
from pretrain.parallel import sharding
from pretrain.training import state

MODEL = {"embed_dim": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2, "head_dim": 8, "shared": False}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two encoders, whose rows differ in length, over a few documents."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "text.txt").write_text("\n".join(f"document {n} of some length" for n in range(300)))
    settings = {
        "FILES": str(tmp_path / "text.txt"), "BATCH_SIZE": 8, "eval_batches": 1,
        "lengths": {"inputs": 16, "targets": 24}, "text_files.task.validation_fraction": 0.2,
        **{f"dual_encoder.DualEncoderConfig.{name}": value for name, value in MODEL.items()},
    }  # fmt: skip
    bindings = [f"{name} = {value!r}" for name, value in settings.items()]
    return config.load("runs/text_files_contrastive.gin", bindings)


def test_a_text_has_the_vector_of_its_row(run):
    """Each side by its own encoder; texts that do not fill the last batch, and one too long for its row."""
    (batch,) = evaluation.held_out(run)
    mesh, params = run.mesh.build(), state.init_params(run.model, 0)
    model = nnx.merge(state.graph(run.model), params)
    for side, feature in (("left", "inputs"), ("right", "targets")):
        wanted = np.asarray(model.embed(batch, side))
        ended = [example[feature] for example in rows.examples(batch)]
        assert len(ended) == 8 and all(text[-1] == 1 for text in ended)
        texts = [text[:-1] for text in ended]
        with sharding.layout(mesh, run.rules):
            found = embed_tokens(run, params, mesh, [*texts, *texts[:3]], side)
            room = run.lengths[feature] - 1
            long = np.arange(3, 3 + 2 * room)
            cut = embed_tokens(run, params, mesh, [long, long[:room]], side)
        np.testing.assert_allclose(found, [*wanted, *wanted[:3]], atol=1e-5)
        np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


def test_a_model_of_another_family_makes_none():
    run = config.load("runs/quickstart.gin")
    with pytest.raises(InputError, match="makes no vectors"):
        embed_tokens(run, {}, run.mesh.build(), [[5]])


def test_the_part_of_a_mixture_that_compares_says_how_texts_are_read():
    run = config.load("runs/masked_and_contrastive_tiny.gin", ["BATCH_SIZE = 8"])
    mesh, params = run.mesh.build(), state.init_params(run.model, 0)
    with sharding.layout(mesh, run.rules):
        (one, other) = embed_tokens(run, params, mesh, [[5, 6, 7], [5, 6, 7, *range(3, 200)]])
    assert one @ one == pytest.approx(1) and one @ other < 0.99
