"""A run of a tiny decoder on one device."""

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from pretrain import optim
from pretrain.objectives import CausalLM
from pretrain.parallel.mesh import MeshConfig
from pretrain.run import RunConfig


class OneDevice(MeshConfig):
    """Programs for one device compile sooner."""

    def build(self, devices=None):
        return super().build(jax.devices()[:1])


@pytest.fixture
def run(tiny_config) -> RunConfig:
    """One document a row and a half, so that half of every other row is padding."""

    def read(split, shuffle_files, seed=None):
        tokens = np.random.RandomState(0).randint(3, 259, (64, 23)).astype(np.int32)
        return tf.data.Dataset.from_tensor_slices({"targets": tokens})

    return RunConfig(
        task=seqio.Task(
            "corpus",
            source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
            preprocessors=[seqio.CacheDatasetPlaceholder()],
            output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
        ),
        objective=CausalLM(join_documents=False),
        model=tiny_config("decoder", vocab_size=384),
        optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-3)),
        lengths={"targets": 16},
        steps=1,
        batch_size=8,
        shuffle_buffer=8,
        mesh=OneDevice(),
        peak_flops=1e9,
    )
