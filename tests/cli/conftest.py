"""The command line in this process, small runs over a small text, and model dirs that nobody had to train."""

import dataclasses
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pretrain import checkpointing, config, pipeline
from pretrain.cli import main
from pretrain.parallel import sharding
from pretrain.training import model_dirs, step

LINES = [f"document {number} of some length" for number in range(200)]

# Two runs of a user's own, as small as they get on the 8 simulated devices.
SPANS = """\
from __gin__ import dynamic_registration
from pretrain import optim
from pretrain import run
from pretrain.models import encoder_decoder
from pretrain.objectives import span_corruption
from tasks import text_files

include 'models/t5_1_1_tiny.gin'

STEPS = 2
SEED = 0
FILES = None
FIELD = 'text'

run.RunConfig:
  task = @text_files.task()
  objective = @span_corruption.SpanCorruption()
  model = @encoder_decoder.EncoderDecoderConfig()
  optimizer = @optim.AdamW()
  lengths = {'inputs': 48, 'targets': 24}
  steps = %STEPS
  seed = %SEED
  batch_size = 8
  shuffle_buffer = 10
  eval_batches = 1
  log_period = 1

optim.AdamW:
  schedule = @optim.Constant()
  b2 = 0.98
optim.Constant:
  peak = 1e-3

text_files.task:
  files = %FILES
  field = %FIELD
  validation_fraction = 0.1

encoder_decoder.EncoderDecoderConfig:
  embed_dim = 16
  mlp_dim = 16
  head_dim = 4
  encoder_layers = 1
  decoder_layers = 1
"""
CAUSAL = (
    SPANS.replace("models import encoder_decoder", "models import decoder")
    .replace("import span_corruption", "import causal_lm")
    .replace("@span_corruption.SpanCorruption()", "@causal_lm.CausalLM()")
    .replace("models/t5_1_1_tiny.gin", "models/decoder_tiny.gin")
    .replace("encoder_decoder.EncoderDecoderConfig", "decoder.DecoderConfig")
    .replace("'inputs': 48, 'targets': 24", "'targets': 16")
    .replace("  encoder_layers = 1\n  decoder_layers = 1", "  num_layers = 1")
)
RUN_FILES = {"spans.gin": SPANS, "causal.gin": CAUSAL}


@dataclasses.dataclass
class Result:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def is_refused(self, *parts: str) -> None:
        """Asserts exit code 2 and one sentence on stderr, with all of `parts` in it, and no more."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("pretrain: ")
        assert self.err.endswith((".\n", "?\n"))
        assert self.err.count("\n") == 1, self.err
        for part in parts:
            assert part in self.err, f"{part!r} is not in {self.err!r}"

    def is_refused_untouched(self, *parts: str) -> None:
        """Asserts also that there is no ./model, and no half-prepared data."""
        self.is_refused(*parts)
        assert not Path("model").exists()
        assert not list(Path("tfds").rglob("*incomplete*"))


def flags(settings: Mapping[str, object]) -> list[str]:
    return [f"--gin.{name}={value!r}" for name, value in settings.items()]


@pytest.fixture
def call(monkeypatch, capfd):
    """call(*arguments, settings={NAME: VALUE}) is `pretrain ARGUMENTS` in this process, settings as flags."""

    def run(*arguments: object, settings: Mapping[str, object] | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["pretrain", *map(str, arguments), *flags(settings or {})])
        capfd.readouterr()
        try:
            main.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def own_directory(tmp_path, monkeypatch):
    """A test stands in a directory of its own, with the run files; data are prepared there too."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name, text in RUN_FILES.items():
        (tmp_path / name).write_text(text)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture
def train(call, own_directory, text):
    """train(*arguments, settings=...) is `pretrain train spans.gin` into ./model, its FILES the text."""

    def run(*arguments: object, settings: Mapping[str, object] | None = None) -> Result:
        given = {"FILES": str(text), **(settings or {})}
        return call("train", "spans.gin", "--model-dir", "model", *flags(given), *arguments)

    return run


@pytest.fixture
def change(own_directory):
    """change(old line, new line) changes spans.gin, and returns the line's number."""

    def write(old: str, new: str) -> int:
        lines = SPANS.splitlines()
        index = lines.index(old)
        Path("spans.gin").write_text("\n".join([*lines[:index], new, *lines[index + 1 :], ""]))
        return index + 1

    return write


@pytest.fixture
def change_and_import(change):
    """change_and_import(import statement, old line, new line) changes spans.gin."""

    def write(statement: str, old: str, new: str) -> None:
        change(old, new)
        changed = Path("spans.gin").read_text()
        Path("spans.gin").write_text(changed.replace("from tasks", f"{statement}\nfrom tasks", 1))

    return write


def write_model_dir(directory: Path, name: str) -> None:
    """A text, and a model dir with a checkpoint of step 2; no model was ever trained less."""
    directory.mkdir()
    text, run_file = directory / "text.txt", directory / name
    text.write_text("\n".join(LINES))
    run_file.write_text(RUN_FILES[name])
    run, config_text = config.load_with_text(run_file, [f"FILES = '{text}'"])
    batches = pipeline.batches(run)
    next(batches)
    with sharding.layout(run.mesh.build(), run.rules):
        state = step.programs(run).init()
    model_dirs.claim(directory / "model", config_text)
    saved = checkpointing.Checkpoints(directory / "model")
    saved.save(2, state, batches, config_text)
    saved.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """A directory with `spans` and `causal`, each with a text and a model dir over it."""
    root = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
        for name in RUN_FILES:
            write_model_dir(root / Path(name).stem, name)
    return root


@pytest.fixture
def spans(written, monkeypatch) -> Path:
    """An encoder-decoder's model dir, only to read."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(written / "tfds"))
    return written / "spans" / "model"


@pytest.fixture
def causal(written, monkeypatch) -> Path:
    """A decoder's model dir, only to read."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(written / "tfds"))
    return written / "causal" / "model"


@pytest.fixture
def resume(call, own_directory, causal):
    """resume(*arguments, settings=...) trains causal.gin from step 2, in ./model, a copy."""
    shutil.copytree(causal, "model")
    files = f"--gin.FILES='{causal.parent / 'text.txt'}'"

    def run(*arguments: object, settings: Mapping[str, object] | None = None) -> Result:
        return call("train", "causal.gin", "--model-dir", "model", files, *arguments, settings=settings)

    return run
