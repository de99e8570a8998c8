"""`pretrain cache`: the same bytes however it is run, a kill in between too, and what it says."""

import functools
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pretrain import caching, config, pipeline
from pretrain.cli.cache import start_worker
from pretrain.data.manifest import MANIFEST, SETTINGS, Manifest
from pretrain.data.store import Store

pytestmark = pytest.mark.usefixtures("own_directory")

# As `pretrain`, with shards as small as the files of the source, so that a small text has several.
SMALL_SHARDS = "from pretrain import caching\ncaching.MIN_SHARD_BYTES = 1\nfrom pretrain.cli import main\n"


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> str:
    """The setting of a text of 600 kB, which TFDS prepares in 4 files of train and one of validation."""
    monkeypatch.setattr(caching, "MIN_SHARD_BYTES", 1)
    rng = np.random.RandomState(0)
    words = ["".join(map(chr, rng.randint(97, 123, 6))) for _ in range(300)]
    (tmp_path / "large.txt").write_text("\n".join(" ".join(rng.choice(words, 30)) for _ in range(3000)))
    return f"--gin.FILES='{tmp_path / 'large.txt'}'"


def files(directory: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(directory).iterdir()}


@pytest.fixture
def one(call, corpus) -> dict[str, str]:
    """The files of the store that one process makes without a stop, in ./one."""
    result = call("cache", "spans.gin", "--out", "one", "--workers", 1, corpus)
    assert result.code == 0, result
    assert re.search(r"train +2,708 +565,972 +566 kB +[\d.]+ kB +4 *\n", result.out), result.out
    assert re.search(r"Done: one, .* tokens/s, .* a worker\n$", result.out)
    return files("one")


def test_a_killed_command_goes_on_to_the_same_bytes(call, corpus, one):
    kill_after(1, ["cache", "spans.gin", "--out", "killed", "--workers", "1", corpus])
    assert not Path("killed", MANIFEST).exists()
    there = {path: path.stat().st_mtime_ns for path in Path("killed").glob("train-*.json")}
    assert 1 <= len(there) < 4
    result = call("cache", "spans.gin", "--out", "killed", "--workers", 1, corpus)
    assert result.code == 0, result
    assert files("killed") == one
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())


@pytest.mark.slow
def test_workers_change_no_byte(call, corpus, one):
    result = call("cache", "spans.gin", "--out", "three", "--workers", 3, corpus)
    assert result.code == 0, result
    assert files("three") == one
    kill_after(1, ["cache", "spans.gin", "--out", "killed", "--workers", "2", corpus])
    result = call("cache", "spans.gin", "--out", "killed", "--workers", 2, corpus)
    assert result.code == 0, result
    assert files("killed") == one


def test_a_worker_begins_with_nothing_but_the_arguments(corpus, one):
    """What a process is sent: it makes the same shards, here without the process."""
    start = pickle.loads(pickle.dumps(functools.partial(start_worker, "spans.gin", (corpus,))))
    settings, reports = Manifest.read(Path("one", SETTINGS)), []
    Path("again").mkdir()
    job = caching.Job(directory=Path("again"), settings=settings, split="train", index=2, threads=1)
    start()(job, reports.append)
    assert files("again").items() <= one.items() and len(files("again")) == 3
    assert reports[-1].finished and sum(report.documents for report in reports) == job.finished().documents


def kill_after(shards: int, arguments: list[str]) -> None:
    """Runs the command and kills it when so many shards are finished."""
    program = f"import sys\nsys.argv = ['pretrain', *{arguments!r}]\n{SMALL_SHARDS}main.main()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(config.shipped().parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(Path("killed").glob("train-*.json"))) < shards:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_the_store_is_the_text_of_the_run(call, text):
    arguments = ("cache", "spans.gin", "--out", "store", "--splits", "train", f"--gin.FILES='{text}'")
    result = call(*arguments)
    assert result.code == 0, result
    store = Store.open("store", "train")
    documents = bytes((store.read(0, store.tokens) - 3).tolist()).decode()
    held = re.findall(r"document \d+ of some length", documents)
    assert "".join(held) == documents
    assert set(held) < set(text.read_text().splitlines())
    run = config.load("spans.gin", [f"FILES = '{text}'"])
    identity = pipeline.identity(run, "train")
    assert store.manifest.vocabulary == identity["the vocabulary"]
    assert store.manifest.splits["train"].source == identity["the train data of task 'text_files'"]

    before = files("store")
    result = call(*arguments)
    assert result.code == 0
    assert result.out.endswith("store is complete. Nothing to do.\n")
    result = call("cache", "--out", "store", "--check")
    assert result.code == 0
    assert result.out.endswith("store is whole: every record is what was written.\n")
    assert files("store") == before

    text.write_text(text.read_text().replace("some length", "another one"))
    result = call(*arguments, "--block-tokens", 7)
    result.is_refused("store holds a store of something else (its blocks have 4096 tokens, not 7; ")
    result.is_refused("; its train data are others)")
    assert files("store") == before


def test_check_names_what_is_damaged(call, text):
    assert call("cache", "spans.gin", "--out", "store", f"--gin.FILES='{text}'").code == 0
    train, validation = Path("store/train-00000-of-00001"), Path("store/validation-00000-of-00001")
    content = bytearray(train.with_suffix(".array_record").read_bytes())
    content[200] ^= 1
    train.with_suffix(".array_record").write_bytes(content)
    validation.with_suffix(".ends.npy").unlink()
    result = call("cache", "--out", "store", "--check")
    assert result.code == 1
    assert "train-00000-of-00001.array_record, record 0, is damaged" in result.out
    assert "validation-00000-of-00001.ends.npy is missing" in result.out
    assert result.out.endswith("store has 2 damaged or missing places, listed above.\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["python_stdlb"], ["No task 'python_stdlb' is registered; did you mean python_stdlib?"]),
        (["text_files"], ["No task 'text_files' is registered", "cached by the run file that names it"]),
        (["nowhere.gin"], ["No run file 'nowhere.gin'"]),
        (["python_stdlib", "--gin.SEED=1"], ["--gin.SEED=1 is a setting of a run file"]),
        (["--gin.SEED=1"], ["--gin.SEED=1"]),
        ([], ["There is no TASK: name a SeqIO task, or a run file."]),
        (["--check"], ["store is no finished store (it has no manifest.json)"]),
        (["causal.gin"], ["files is None: set it to a glob"]),
    ],
)
def test_wrong_arguments_are_refused(call, arguments, parts):
    call("cache", *arguments, "--out", "store").is_refused(*parts)
    assert not Path("store").exists()


def test_another_directory_is_refused(call, text):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    arguments = ("cache", "spans.gin", f"--gin.FILES='{text}'", "--out")
    call(*arguments, "mine").is_refused("mine is not empty and no store (notes.txt is in it)")
    call(*arguments, "mine/notes.txt").is_refused("cannot be written to")
    call(*arguments, "store", "--splits", "train,tset").is_refused("has no split 'tset'")
    assert files("mine").keys() == {"notes.txt"}
    assert not Path("store").exists()


def test_a_mixture_is_refused_with_its_tasks(call):
    Path("mixed_tasks.py").write_text(
        "import seqio\n"
        "import tasks\n"
        "if 'mixed' not in seqio.MixtureRegistry.names():\n"
        "    seqio.MixtureRegistry.add('mixed', [('python_stdlib', 1.0)])\n"
    )
    text = Path("spans.gin").read_text().replace("from tasks", "import mixed_tasks\nfrom tasks", 1)
    Path("spans.gin").write_text(text)
    try:
        result = call("cache", "spans.gin", "--gin.task='mixed'", "--out", "store")
        result.is_refused("'mixed' is a mixture of python_stdlib: cache each into its own --out")
    finally:
        sys.modules.pop("mixed_tasks", None)
