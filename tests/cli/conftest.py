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
RUN_FILES = {"spans": "runs/text_files.gin", "causal": "runs/text_files_causal_lm.gin"}

# Models as small as they get on the 8 simulated devices.
COMMON = {"STEPS": 2, "BATCH_SIZE": 8, "shuffle_buffer": 10, "eval_batches": 1, "log_period": 1}
SMALL = {
    "spans": {
        **COMMON,
        "lengths": {"inputs": 48, "targets": 24},
        "encoder_decoder.EncoderDecoderConfig.embed_dim": 16,
        "encoder_decoder.EncoderDecoderConfig.mlp_dim": 16,
        "encoder_decoder.EncoderDecoderConfig.head_dim": 4,
        "encoder_decoder.EncoderDecoderConfig.encoder_layers": 1,
        "encoder_decoder.EncoderDecoderConfig.decoder_layers": 1,
    },
    "causal": {
        **COMMON,
        "lengths": {"targets": 16},
        "decoder.DecoderConfig.embed_dim": 16,
        "decoder.DecoderConfig.mlp_dim": 16,
        "decoder.DecoderConfig.head_dim": 4,
        "decoder.DecoderConfig.num_layers": 1,
    },
}


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


def small_settings(kind: str, text: Path) -> dict[str, object]:
    """What makes a shipped run over `text` small."""
    return {"FILES": str(text), "text_files.task.validation_fraction": 0.1, **SMALL[kind]}


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
    """A test stands in a directory of its own, where data are prepared too."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small():
    """small("spans" or "causal", text) is the flags that make a shipped run over `text` small."""
    return lambda kind, text: flags(small_settings(kind, text))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture
def train(call, text):
    """train(*arguments, settings=..., run_file=...) is `pretrain train` into ./model."""

    def run(
        *arguments: object,
        settings: Mapping[str, object] | None = None,
        run_file: object = RUN_FILES["spans"],
    ) -> Result:
        given = {"FILES": str(text), "text_files.task.validation_fraction": 0.1, **(settings or {})}
        return call("train", run_file, "--model-dir", "model", *flags(given), *arguments)

    return run


@pytest.fixture
def changed_run_file(tmp_path):
    """write(old line, new line) is the shipped run over text files so changed, and the line's number."""

    def write(old: str, new: str) -> tuple[Path, int]:
        lines = (config.shipped() / RUN_FILES["spans"]).read_text().splitlines()
        index = lines.index(old)
        lines[index] = new
        path = tmp_path / "my_run.gin"
        path.write_text("\n".join(lines) + "\n")
        return path, index + 1

    return write


@pytest.fixture
def importing_run_file(changed_run_file):
    """As `changed_run_file`, with one more import and no line numbers."""

    def write(statement: str, old: str, new: str) -> Path:
        path, _ = changed_run_file(old, new)
        path.write_text(path.read_text().replace("from tasks", f"{statement}\nfrom tasks", 1))
        return path

    return write


def write_model_dir(directory: Path, kind: str) -> None:
    """A text, and a model dir with a checkpoint of step 2; no model was ever trained less."""
    directory.mkdir()
    text = directory / "text.txt"
    text.write_text("\n".join(LINES))
    bindings = [f"{name} = {value!r}" for name, value in small_settings(kind, text).items()]
    run, config_text = config.load_with_text(RUN_FILES[kind], bindings)
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
        for kind in RUN_FILES:
            write_model_dir(root / kind, kind)
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
    """resume(*arguments, settings=...) trains the decoder from its step 2, in ./model, a copy."""
    shutil.copytree(causal, "model")
    given = flags(small_settings("causal", causal.parent / "text.txt"))

    def run(*arguments: object, settings: Mapping[str, object] | None = None) -> Result:
        return call(
            "train", RUN_FILES["causal"], "--model-dir", "model", *given, *arguments, settings=settings
        )

    return run
