"""Gin files become runs, bindings change them, and the text kept in a model dir rebuilds them."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest
import sentencepiece

from pretrain import config, optim
from pretrain.errors import InputError

SHIPPED = sorted(path.name for path in config.shipped().glob("runs/*.gin"))

MY_TASKS = """
import seqio

seqio.TaskRegistry.add(
    "my_corpus",
    source=seqio.TextLineDataSource({"train": "train.txt", "validation": "train.txt"}),
    preprocessors=[
        lambda dataset: dataset.map(lambda line: {"targets": line}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
)
"""

MY_RUN = """
from __gin__ import dynamic_registration
import my_tasks
from pretrain import run

include 'runs/quickstart.gin'

STEPS = 7
run.RunConfig.task = 'my_corpus'
"""


def values(value):
    """A run as comparable values: a task, which is made anew, is told by its name and features."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value), {field.name: values(getattr(value, field.name)) for field in fields}
    if hasattr(value, "output_features"):
        return value.name, dict(value.output_features)
    return value


def test_bindings_name_macros_fields_and_anything_else():
    run = config.load(
        "runs/quickstart.gin",
        bindings=[
            "STEPS = 20",
            "batch_size = 4",
            "pack=True",
            "span_corruption.SpanCorruption.noise_density = 0.2",
            "lengths = {'inputs': 64,\n 'targets': 32}",
        ],
    )
    assert (run.steps, run.batch_size, run.pack) == (20, 4, True)
    assert run.optimizer.schedule.total_steps == 20  # a macro goes wherever the file uses it
    assert run.objective.noise_density == 0.2
    assert run.lengths == {"inputs": 64, "targets": 32}
    assert config.load("runs/quickstart.gin", bindings=["steps = 10"]).steps == 10
    assert config.load("runs/quickstart.gin", bindings=["STEPS = 5", "STEPS = 6"]).steps == 6


def test_files_go_over_the_run_and_flags_over_them():
    over = ["include 'meshes/gpu_8_tensor.gin'", "include 'models/t5_1_1_small.gin'"]
    run = config.load("runs/quickstart.gin", [*over, "mesh.MeshConfig.fsdp = 2", "STEPS = 3"])
    assert (run.mesh.fsdp, run.mesh.tensor, run.model.vocab_size, run.steps) == (2, 2, 32128, 3)
    assert run.model.activation == "gelu"


@pytest.mark.parametrize(
    "name, said",
    [
        ("models/decoder_8b.gin", r"decoder_8b.gin, line 6: nothing in this run refers to decoder\.Decoder"),
        ("meshes/v5e_3x3.gin", "The command line: there is no file 'meshes/v5e_3x3.gin'"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        config.load("runs/quickstart.gin", [f"include '{name}'"])


def test_a_binding_may_refer_to_what_the_file_does_not_use():
    bindings = [
        "optimizer = @optim.AdamW()",
        "optim.AdamW.schedule = @optim.Linear()",
        "optim.AdamW.b1 = 0.5",
    ]
    run = config.load(
        "runs/quickstart.gin", [*bindings, "optim.Linear.peak = 1", "optim.Linear.total_steps = %STEPS"]
    )
    assert isinstance(run.optimizer, optim.AdamW)
    assert run.optimizer.b1 == 0.5
    assert run.optimizer.schedule == optim.Linear(peak=1, total_steps=run.steps)


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ("a/*.txt", "{here}/a/*.txt"),
        (["a.txt", "../b.txt", "/c.txt"], ["{here}/a.txt", "{above}/b.txt", "/c.txt"]),
        ("~/a.txt", "~/a.txt"),
        ("gs://bucket/a.txt", "gs://bucket/a.txt"),
    ],
)
def test_paths_are_kept_absolute(files, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, text = config.load_with_text("runs/text_files.gin", [f"FILES = {files!r}", "FIELD = 'a/b'"])
    expected = repr(kept).format(here=tmp_path, above=tmp_path.parent)
    assert f"FILES={expected}".replace(" ", "") in re.sub(r"[\s\\]", "", text)
    assert "FIELD = 'a/b'\n" in text
    assert config.difference(text, _text_from(tmp_path / "elsewhere", text, monkeypatch)) == []


PATHS = """
import os

import seqio

from tasks.vocabularies import byte_vocabulary

def corpus(files: dict[str, str | os.PathLike], extra: str | os.PathLike = "extra.txt") -> seqio.Task:
    return seqio.Task(
        "mine",
        source=seqio.TextLineDataSource({"train": files["train"], "validation": extra}),
        preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(byte_vocabulary(), add_eos=True)},
    )
"""
PATHS_RUN = """
from __gin__ import dynamic_registration
import my_paths
from pretrain import run
include 'runs/quickstart.gin'
ONE = 'one.txt'
run.RunConfig.task = @my_paths.corpus()
my_paths.corpus.files = {'train': %ONE}
"""


def test_paths_in_macros_and_defaults_are_kept_absolute_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_paths.py").write_text(PATHS)
    (tmp_path / "my_run.gin").write_text(PATHS_RUN)
    _, text = config.load_with_text("my_run.gin")
    joined = re.sub(r"[\s\\\\]", "", text)
    assert f"ONE='{tmp_path}/one.txt'" in joined
    assert f"extra='{tmp_path}/extra.txt'" in joined


def test_directories_called_like_the_shipped_ones_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "models", "pretrain"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.gin").write_text(
        MY_RUN.replace("import my_tasks", "").replace("'my_corpus'", "'python_stdlib'")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert config.load("mine.gin").steps == 7


def test_a_file_that_includes_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    with pytest.raises(InputError, match="b.gin, line 1: a.gin includes itself"):
        config.load("a.gin")


def _text_from(directory, text, monkeypatch):
    directory.mkdir()
    monkeypatch.chdir(directory)
    (directory / "config.gin").write_text(text)
    return config.load_with_text("config.gin")[1]


def test_one_load_leaves_nothing_for_the_next():
    plain = config.load_with_text("runs/quickstart.gin")
    config.load("runs/quickstart_causal_lm.gin", ["STEPS = 3", "optim.Cosine.peak = 0.5"])
    again = config.load_with_text("runs/quickstart.gin")
    assert plain[1] == again[1]
    assert values(plain[0]) == values(again[0])


PAPERS = [name for name in SHIPPED if name.replace(".gin", "_tiny.gin") in SHIPPED]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_run_builds_and_its_text_builds_it_again(name, tmp_path, request):
    bindings = ["STEPS = 30", "BATCH_SIZE = 24", "SEED = 5"]
    if name.startswith("text_files"):
        bindings += ["FILES = ['/data/a*.txt', '/data/b.jsonl']", "FIELD = 'body'"]
    if name == "text_pairs.gin":
        bindings += ["FILES = '/data/a.jsonl'", "FIELDS = ['question', 'answer']"]
    if name.startswith("c4") or name in PAPERS:
        bindings.append(f"VOCABULARY_FILE = '{request.getfixturevalue('vocabulary_file')}'")
    run, text = config.load_with_text(f"runs/{name}", bindings)
    assert (run.steps, run.batch_size, run.seed) == (30, 24, 5)
    run.objective.check(run.lengths, run.vocabulary())
    (tmp_path / "config.gin").write_text(text)
    again, again_text = config.load_with_text(tmp_path / "config.gin")
    assert again_text == text
    assert values(again) == values(run)
    assert "include" not in text
    # Every setting is there, with the defaults of today, whatever they become.
    assert re.search(r"(?m)^run\.RunConfig\.peak_flops = None$", text)
    changed = config.load(tmp_path / "config.gin", ["steps = 40"])
    assert changed.steps == 40


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory):
    """A small SentencePiece model with T5's special ids."""
    prefix = tmp_path_factory.mktemp("vocabulary") / "pieces"
    lines = inspect.getsource(sentencepiece).splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=300, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return f"{prefix}.model"


def test_the_users_own_task_is_imported_from_where_they_stand(tmp_path):
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    (tmp_path / "my_run.gin").write_text(MY_RUN)
    program = (
        "from pretrain import config\n"
        "run, text = config.load_with_text('my_run.gin', ['pack = True'])\n"
        "open('config.gin', 'w').write(text)\n"
        "again = config.load('config.gin')\n"
        "assert again.corpus().name == run.corpus().name == 'my_corpus', again\n"
        "assert (run.steps, run.pack) == (again.steps, again.pack) == (7, True)\n"
        "run.check()\n"
    )
    environment = {"PYTHONPATH": str(config.shipped().parent), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_difference_names_what_changed_and_no_comment():
    old, new = (config.load_with_text("runs/quickstart.gin", [f"SEED = {seed}"])[1] for seed in (1, 2))
    assert config.difference(old, old) == []
    assert config.difference(old, new) == ["- SEED = 1", "+ SEED = 2"]
    assert config.difference(old, "# a comment\n\n" + old) == []


def test_a_setting_that_an_older_version_did_not_have_is_no_difference_at_its_default():
    def without(text, *names):
        return "".join(line for line in text.splitlines(True) if not line.split(" = ")[0].endswith(names))

    def text(*bindings):
        return config.load_with_text("runs/quickstart.gin", bindings)[1]

    old = without(text(), ".microbatches", ".use_cached")
    assert config.difference(old, text()) == config.data_difference(old, text()) == []
    changed = text("microbatches = 2", "use_cached = True")
    assert config.difference(old, changed) == [
        "+ run.RunConfig.microbatches = 2", "+ run.RunConfig.use_cached = True"
    ]  # fmt: skip
    assert config.data_difference(old, changed) == ["run.RunConfig.use_cached"]
    new = without(text(), ".microbatches")
    assert config.difference(text("microbatches = 2"), new) == ["- run.RunConfig.microbatches = 2"]


@pytest.mark.parametrize(
    ("bindings", "changed"),
    [
        ([], []),
        (["STEPS = 9", "eval_batches = 3", "encoder_decoder.EncoderDecoderConfig.dropout = 0.2"], []),
        (["span_corruption.SpanCorruption.z_loss = 1e-4"], []),
        (["SEED = 4"], ["SEED"]),
        (["seed = 4"], ["run.RunConfig.seed", "SEED"]),
        (["BATCH_SIZE = 24", "FILES = '/other/*.txt'"], ["BATCH_SIZE", "FILES"]),
        (["text_files.task.documents = 'files'"], ["text_files.task.documents"]),
        (
            ["span_corruption.SpanCorruption.noise_density = 0.25"],
            ["span_corruption.SpanCorruption.noise_density"],
        ),
    ],
)
def test_data_difference_names_what_the_batches_come_from(bindings, changed):
    def text(*more):
        return config.load_with_text("runs/text_files.gin", ["FILES = '/data/*.txt'", *more])[1]

    assert sorted(config.data_difference(text(), text(*bindings))) == sorted(changed)
