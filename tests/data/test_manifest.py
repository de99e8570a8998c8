"""A directory belongs to one store, whoever comes, and what is half written has no name."""

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.data.manifest import (
    MANIFEST,
    SETTINGS,
    Manifest,
    Shard,
    Split,
    claim,
    finish,
    locked,
    read_json,
    replacing,
    write_json,
)
from pretrain.errors import InputError

SHARD = Shard(
    name="train-00000-of-00001", tokens=3, documents=1, text_bytes=2, block_bytes=9, end_bytes=8,
    digest="d", ends_digest="e",
)  # fmt: skip
WANTED = Manifest(
    task="task", vocabulary="v", vocab_size=359, block_tokens=16,
    splits={"train": Split(source="s", num_shards=1)},
)  # fmt: skip
VALIDATION = {"validation": Split(source="s2", num_shards=3)}


def changed(**changes) -> Manifest:
    return dataclasses.replace(WANTED, **changes)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    whole = changed(splits={"train": dataclasses.replace(WANTED.splits["train"], shards=(SHARD,))})
    for manifest in (WANTED, whole):
        manifest.write(tmp_path / "m.json")
        assert Manifest.read(tmp_path / "m.json") == manifest
    written = json.loads((tmp_path / "m.json").read_text())
    assert (written["format"], written["dtype"]) == (1, "uint16")
    assert written["splits"]["train"]["tokens"] == 3
    assert written["splits"]["train"]["digest"] == whole.splits["train"].digest


@pytest.mark.parametrize("old, new", [("359", "358"), ("}", ""), ('"task"', '"tesk"'), ("{", "[")])
def test_a_damaged_manifest_is_refused(tmp_path, old, new):
    path = tmp_path / MANIFEST
    WANTED.write(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=f"{path} is damaged"):
        Manifest.read(path)


def test_another_format_is_refused(tmp_path):
    write_json(tmp_path / MANIFEST, {"format": 2})
    with pytest.raises(InputError, match="has format 2, and this version reads 1"):
        Manifest.of(tmp_path)


def test_what_has_no_manifest_is_no_finished_store(tmp_path):
    claim(tmp_path, WANTED)
    with pytest.raises(InputError, match=f"{tmp_path} is no finished store"):
        Manifest.of(tmp_path)


def test_a_directory_is_claimed_once_and_splits_are_added(tmp_path):
    claim(tmp_path, WANTED)
    written = (tmp_path / SETTINGS).stat().st_mtime_ns
    claim(tmp_path, WANTED)
    assert (tmp_path / SETTINGS).stat().st_mtime_ns == written
    claim(tmp_path, changed(splits=VALIDATION))
    assert list(Manifest.read(tmp_path / SETTINGS).splits) == ["train", "validation"]
    claim(tmp_path, WANTED)
    assert names(tmp_path) == [SETTINGS]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "c4"}, "its task is 'task', not 'c4'"),
        ({"vocabulary": "w"}, "its vocabulary has 359 ids and the fingerprint v, not 359 and w"),
        ({"block_tokens": 8}, "its blocks have 16 tokens, not 8"),
        ({"splits": {"train": Split(source="t", num_shards=1)}}, "its train data are others"),
        ({"splits": {"train": Split(source="s", num_shards=2)}}, "its train data are others"),
    ],
)
@pytest.mark.parametrize("file", [SETTINGS, MANIFEST])
def test_a_store_of_something_else_is_refused_and_left_alone(tmp_path, other, message, file):
    WANTED.write(tmp_path / file)
    before = (tmp_path / file).read_bytes()
    with pytest.raises(InputError, match="holds a store of something else") as error:
        claim(tmp_path, changed(**other))
    assert f"({message})" in str(error.value)
    assert names(tmp_path) == [file]
    assert (tmp_path / file).read_bytes() == before


def test_a_directory_of_other_files_is_refused_and_left_alone(tmp_path):
    for name in ("notes.txt", "notes.txt.partial-1"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and no store \(notes.txt is in it\)"):
        claim(tmp_path, WANTED)
    assert names(tmp_path) == ["notes.txt", "notes.txt.partial-1"]


def test_what_a_killed_command_had_begun_is_removed(tmp_path):
    (tmp_path / f"{SETTINGS}.partial-123").write_text("{")
    claim(tmp_path, WANTED)
    (tmp_path / "train-00000-of-00001.array_record.partial-99").write_text("half")
    claim(tmp_path, WANTED)
    assert names(tmp_path) == [SETTINGS]


def test_two_commands_do_not_write_to_one_directory(tmp_path):
    with (
        locked(tmp_path / "new" / "store"),
        pytest.raises(InputError, match="Another `pretrain cache` is writing"),
        locked(tmp_path / "new" / "store"),
    ):
        pass
    with locked(tmp_path / "new" / "store"):
        pass


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"), locked(tmp_path / "file"):
        pass


def test_a_manifest_keeps_the_splits_of_earlier_commands(tmp_path):
    train = {"train": dataclasses.replace(WANTED.splits["train"], shards=(SHARD,))}
    finish(tmp_path, changed(splits=train))
    both = finish(tmp_path, changed(splits=VALIDATION))
    assert both == Manifest.of(tmp_path) == changed(splits={**train, **VALIDATION})
    written = (tmp_path / MANIFEST).stat().st_mtime_ns
    finish(tmp_path, changed(splits=train))
    assert (tmp_path / MANIFEST).stat().st_mtime_ns == written


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "before"
        raise ZeroDivisionError
    assert names(tmp_path) == ["file"]
    with replacing(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert names(tmp_path) == ["file"]


def test_an_object_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, {"b": "ü"}], "c": None}
    write_json(tmp_path / "o.json", content)
    assert read_json(tmp_path / "o.json") == content
