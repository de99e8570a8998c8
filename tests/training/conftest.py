"""A run of a tiny decoder over numbers, in this process, and what it was told and left behind."""

import json
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from pretrain import optim
from pretrain.objectives import CausalLM
from pretrain.parallel.mesh import MeshConfig
from pretrain.run import RunConfig


def _corpus() -> seqio.Task:
    """400 documents of 7 tokens."""

    def read(split, shuffle_files, seed=None):
        starts = tf.data.Dataset.range(400, output_type=tf.int32)
        return starts.map(lambda start: {"targets": 3 + (start + tf.range(7)) % 250})

    return seqio.Task(
        "numbers",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
    )


class Watcher:
    """An observer that remembers."""

    def __init__(self):
        self.warnings, self.plans, self.saves = [], [], []

    def started(self, facts): ...
    def progressed(self, step, figures): ...
    def evaluated(self, step, figures): ...
    def saved(self, step):
        self.saves.append(step)

    def warned(self, message):
        self.warnings.append(message)

    def warm_started(self, plan):
        self.plans.append(plan)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def make_run(tiny_config):
    def make(**changes) -> RunConfig:
        settings = {
            "task": _corpus(),
            "objective": CausalLM(),
            "model": tiny_config("decoder", vocab_size=384, num_layers=1),
            "optimizer": optim.AdamW(schedule=optim.Constant(peak=1e-2)),
            "lengths": {"targets": 8},
            "steps": 12,
            "batch_size": 8,
            "shuffle_buffer": 20,
            "eval_batches": 1,
            "checkpoint_period": 4,
            "keep_checkpoints": 10,
            "log_period": 2,
            "mesh": MeshConfig(),
        }
        return RunConfig(**{**settings, **changes})

    return make


@pytest.fixture
def lines():
    """lines(model dir, name): the objects of one of its .jsonl files."""

    def read(model_dir: Path, name: str) -> list[dict]:
        return [json.loads(line) for line in (model_dir / f"{name}.jsonl").read_text().splitlines()]

    return read
