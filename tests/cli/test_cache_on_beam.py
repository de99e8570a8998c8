"""`pretrain cache --runner`: the same bytes, and one sentence where it cannot be."""

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import pretrain
from pretrain import caching
from pretrain.data.manifest import LOCK, MANIFEST
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_directory")
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed: it is the extra pretrain[beam]",
)
THREADS = (
    "--runner-option", "direct_running_mode=multi_threading", "--runner-option", "direct_num_workers=2",
)  # fmt: skip


@pytest.fixture
def cache(call, tmp_path, monkeypatch):
    """cache(out, *arguments) is `pretrain cache` of a text with 4 shards of train and one of validation."""
    monkeypatch.setattr(caching, "MIN_SHARD_BYTES", 1)
    letters = np.random.RandomState(0).randint(97, 123, (3000, 200)).astype(np.uint8)
    (tmp_path / "large.txt").write_text("\n".join(bytes(line).decode() for line in letters))
    files = f"--gin.FILES='{tmp_path / 'large.txt'}'"
    return lambda out, *arguments: call("cache", "spans.gin", "--out", out, files, *arguments)


def state(directory: str) -> dict[str, tuple[str, int]]:
    """The digest of each file, and when it was written."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in Path(directory).iterdir()
        if path.name != LOCK
    }


def digests(directory: str) -> dict[str, str]:
    return {name: digest for name, (digest, _) in state(directory).items()}


@needs_beam
def test_a_runner_writes_the_same_bytes_and_goes_on(cache):
    assert cache("local", "--workers", 1).code == 0
    result = cache("beam", "--runner", "DirectRunner")
    assert result.code == 0, result
    assert result.out.splitlines()[-1].startswith("Done: beam, ")
    assert digests("beam") == digests("local") and len(digests("beam")) == 3 * 5 + 2

    shutil.copytree("beam", "unfinished")
    gone = ["train-00001-of-00004.json", "train-00003-of-00004.ends.npy", MANIFEST]
    for name in gone:
        Path("unfinished", name).unlink()
    there = state("unfinished")
    result = cache("unfinished", "--runner", "DirectRunner", *THREADS)
    assert result.code == 0, result
    assert digests("unfinished") == digests("local")
    made = {name for name, now in state("unfinished").items() if there.get(name) != now}
    assert {name[:11] for name in made if name != MANIFEST} == {"train-00001", "train-00003"}

    result = cache("unfinished", "--runner", "DirectRunner")
    assert result.out.endswith("unfinished is complete. Nothing to do.\n")


@needs_beam
@pytest.mark.parametrize("options", [(), THREADS], ids=["direct", "threads"])
def test_what_a_worker_refuses_is_said_in_its_sentence(cache, monkeypatch, caplog, options):
    write = caching.write_shard

    def write_or_refuse(directory, name, *rest):
        if name.startswith("train-00002"):
            raise InputError(f"{name} cannot be made: correct it.")
        return write(directory, name, *rest)

    monkeypatch.setattr(caching, "write_shard", write_or_refuse)
    result = cache("store", "--runner", "DirectRunner", *options)
    sentence = "pretrain: train-00002-of-00004 cannot be made: correct it.\n"
    if options:  # a worker has printed its traceback to its stderr, which is that of this process
        assert (result.code, result.err.splitlines(keepends=True)[-1]) == (2, sentence)
    else:
        result.is_refused(sentence)
        assert not caplog.records
    assert not Path("store", MANIFEST).exists()


def test_a_wrong_command_is_refused_before_anything_is_written(cache):
    cache("store", "--runner", "DirectRunner", "--workers", 2).is_refused(
        "--workers and --runner exclude each other: tell the runner by its own option"
    )
    cache("store", "--runner-option", "a=b").is_refused("--runner-option a=b needs a --runner")
    assert not Path("store").exists()


@needs_beam
def test_an_unknown_runner_is_refused_before_anything_is_written(cache):
    cache("store", "--runner", "NoSuchRunner").is_refused("Beam refuses --runner NoSuchRunner (Unexpected")
    assert not Path("store").exists()


def test_without_beam_it_says_what_to_install(cache, monkeypatch):
    monkeypatch.delattr(pretrain, "beam_workers", raising=False)
    monkeypatch.delitem(sys.modules, "pretrain.beam_workers", raising=False)
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # as if it were not installed
    cache("store", "--runner", "DirectRunner").is_refused("which is not here: install pretrain[beam].")
    assert not Path("store").exists()
