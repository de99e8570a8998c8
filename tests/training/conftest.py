"""A run of a tiny decoder over numbers in this process, and one over text in processes of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from pretrain import config, optim
from pretrain.objectives import CausalLM
from pretrain.parallel.mesh import MeshConfig
from pretrain.run import RunConfig
from pretrain.training import loop


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
        self.warnings, self.plans, self.saves, self.events = [], [], [], []

    def started(self, facts): ...
    def progressed(self, step, figures): ...
    def evaluated(self, step, figures): ...
    def saved(self, step):
        self.saves.append(step)

    def happened(self, event, fields):
        self.events.append((event, fields))

    def said(self, message):
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
def train(tmp_path, watcher):
    def run(config, name="model", **settings) -> int:
        return loop.train(config, "config", tmp_path / name, watcher, lambda step: False, **settings)

    return run


@pytest.fixture
def lines():
    """lines(model dir, name): the objects of one of its .jsonl files."""

    def read(model_dir: Path, name: str) -> list[dict]:
        return [json.loads(line) for line in (model_dir / f"{name}.jsonl").read_text().splitlines()]

    return read


ROOT = config.shipped().parent
RUN = """\
from __gin__ import dynamic_registration
from pretrain import optim
from pretrain import run
from pretrain.models import decoder
from pretrain.objectives import causal_lm
from tasks import text_files

include 'models/decoder_tiny.gin'

run.RunConfig:
  task = @text_files.task()
  objective = @causal_lm.CausalLM()
  model = @decoder.DecoderConfig()
  optimizer = @optim.AdamW()
  lengths = {'targets': 16}
  steps = 8
  batch_size = 8
  shuffle_buffer = 10
  eval_period = 4
  eval_batches = 1
  checkpoint_period = 3
  log_period = 1

optim.AdamW.schedule = @optim.Constant()
optim.Constant.peak = 1e-2

text_files.task:
  files = 'text.txt'
  validation_fraction = 0.1

decoder.DecoderConfig:
  embed_dim = 16
  mlp_dim = 16
  head_dim = 4
  num_heads = 4
  num_kv_heads = 2
  num_layers = 1
  dropout = 0.1
"""


class Place:
    """A directory with a run file, its text, and what processes share that run in it."""

    def __init__(self, directory: Path):
        self.directory = directory
        (directory / "run.gin").write_text(RUN)
        (directory / "text.txt").write_text("\n".join(f"document {n} of some length" for n in range(200)))

    def launch(self, *words: str, devices: int = 2) -> subprocess.Popen:
        """Starts Python with these arguments, on so many simulated devices."""
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.directory,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(self.directory / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "TFDS_DATA_DIR": str(self.directory / "tfds"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch_several(self, count: int, *words: str, devices: int = 2) -> list[subprocess.Popen]:
        """The processes of one run, as its flags say to each; one needs no flags."""
        if count == 1:
            return [self.launch(*words, devices=devices)]
        meeting = ["--coordinator", f"localhost:{self.free_port()}", "--processes", str(count), "--process"]
        return [self.launch(*words, *meeting, str(index), devices=devices) for index in range(count)]

    @staticmethod
    def ended(*processes: subprocess.Popen, seconds: float = 120) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each; none is left running."""
        try:
            results = [process.communicate(timeout=seconds) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *result) for process, result in zip(processes, results, strict=True)]

    @staticmethod
    def free_port() -> int:
        with socket.socket() as any_port:
            any_port.bind(("", 0))
            return any_port.getsockname()[1]

    def lines(self, model_dir: str, name: str) -> list[dict]:
        """The objects of one of a model dir's .jsonl files, if it is there."""
        path = self.directory / model_dir / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))
