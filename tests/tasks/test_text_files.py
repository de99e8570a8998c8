"""The user's files come out whole, split for good; a fault ends the preparation with nothing left behind."""

import gzip
import json
import os
import re

import pytest

from pretrain.errors import InputError
from tasks import text_files

_LINES = [f"document {number} of some length" for number in range(400)]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def _read(task, split):
    dataset = task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False)
    return [example["targets_pretokenized"].decode() for example in dataset.as_numpy_iterator()]


def _write_lines(path, lines=_LINES):
    path.write_text("\n".join(lines))
    return str(path)


def test_every_format_gives_the_same_documents_whole_and_once(tmp_path):
    _write_lines(tmp_path / "a.txt", _LINES[:100])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n".join(_LINES[100:200]).encode()))
    objects = "\n".join(json.dumps({"text": line}) for line in _LINES[200:300])
    (tmp_path / "c.jsonl").write_text(objects)
    objects = "\n".join(json.dumps({"text": line}) for line in _LINES[300:])
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(objects.encode()))
    task = text_files.task([f"{tmp_path}/*.txt*", f"{tmp_path}/*.jsonl*"], validation_fraction=0.1)
    train, validation = _read(task, "train"), _read(task, "validation")
    assert sorted(train + validation) == sorted(_LINES)
    assert 20 <= len(validation) <= 60
    assert task.num_input_examples("train") == len(train)
    assert task.num_input_examples("validation") == len(validation)
    assert task.name == "text_files"


def test_targets_are_the_documents_bytes_without_eos(tmp_path):
    task = text_files.task(_write_lines(tmp_path / "a.txt", ["hi"]), validation_fraction=0)
    assert tuple(task.splits) == ("train",)
    (example,) = task.get_dataset(split="train").as_numpy_iterator()
    assert example["targets"].tolist() == [ord("h") + 3, ord("i") + 3]
    assert task.output_features["targets"].add_eos
    assert task.supports_caching


def test_whole_files_and_equal_lines_are_documents_of_their_own(tmp_path):
    for name in ("a.txt", "b.txt"):
        _write_lines(tmp_path / name, ["same", "same", "", "same"])
    assert _read(text_files.task(f"{tmp_path}/*.txt", validation_fraction=0), "train") == ["same"] * 6
    task = text_files.task(f"{tmp_path}/*.txt", validation_fraction=0, documents="files")
    assert _read(task, "train") == ["same\nsame\n\nsame"] * 2


def test_a_document_keeps_its_split_when_the_corpus_grows_and_moves(tmp_path):
    path = tmp_path / "a.txt"
    before = set(_read(text_files.task(_write_lines(path), validation_fraction=0.2), "validation"))
    path.unlink()
    _write_lines(tmp_path / "0.txt", ["new first line", *reversed(_LINES)])
    after = set(_read(text_files.task(f"{tmp_path}/*.txt", validation_fraction=0.2), "validation"))
    assert after - {"new first line"} == before
    wider = set(_read(text_files.task(f"{tmp_path}/*.txt", validation_fraction=0.4), "validation"))
    assert after < wider


def test_equal_documents_share_a_split(tmp_path):
    task = text_files.task(_write_lines(tmp_path / "a.txt", _LINES * 2), validation_fraction=0.2)
    assert not set(_read(task, "train")) & set(_read(task, "validation"))


def test_validation_files_are_for_validation_only(tmp_path):
    for name in ("a", "b", "held_out"):
        _write_lines(tmp_path / f"{name}.txt", [f"{name} 1", f"{name} 2"])
    task = text_files.task(f"{tmp_path}/*.txt", validation_files=f"{tmp_path}/held_out.txt")
    assert sorted(_read(task, "train")) == ["a 1", "a 2", "b 1", "b 2"]
    assert sorted(_read(task, "validation")) == ["held_out 1", "held_out 2"]
    with pytest.raises(InputError, match="files matches only what validation_files matches too"):
        _read(text_files.task(f"{tmp_path}/a.txt", validation_files=f"{tmp_path}/*.txt"), "train")


def test_an_edited_file_is_prepared_anew_and_an_untouched_one_is_not(tmp_path, data_dir):
    path = tmp_path / "a.txt"
    _write_lines(path, ["old 1", "old 2"])
    assert sorted(_read(text_files.task(str(path), validation_fraction=0), "train")) == ["old 1", "old 2"]
    assert sorted(_read(text_files.task(str(path), validation_fraction=0), "train")) == ["old 1", "old 2"]
    assert len(os.listdir(data_dir / "text_files")) == 1
    stat = path.stat()
    _write_lines(path, ["new 1", "new 2"])  # of the same size, and a nanosecond later
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert sorted(_read(text_files.task(str(path), validation_fraction=0), "train")) == ["new 1", "new 2"]
    assert len(os.listdir(data_dir / "text_files")) == 2


def test_identity_is_that_of_the_text_wherever_the_files_lie(tmp_path):
    def identity(path, **settings):
        return text_files.task(str(path), validation_fraction=0, **settings).source.identity("train")

    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a\nb")
    other.write_text("a\nb")
    assert identity(one) == identity(other)
    other.write_text("a\nc")
    assert identity(one) != identity(other)
    assert identity(one) != identity(one, documents="files")


def test_settings_are_part_of_the_fingerprint(tmp_path, data_dir):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}')
    (tmp_path / "b.txt").write_text("three")
    for settings, expected in (({}, "one"), ({"field": "body"}, "two"), ({"documents": "files"}, "one")):
        task = text_files.task(f"{tmp_path}/*", validation_fraction=0, **settings)
        assert {*_read(task, "train")} == {expected, "three"}
    assert len(os.listdir(data_dir / "text_files")) == 3


def test_settings_for_files_that_are_not_there_are_refused(tmp_path):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}')
    with pytest.raises(
        InputError, match="field is 'body', which is for .jsonl files, and files matches none"
    ):
        _read(text_files.task(f"{tmp_path}/*.txt", field="body", validation_fraction=0), "train")
    with pytest.raises(InputError, match="documents is 'files', which is for .txt files, and files matches"):
        _read(text_files.task(f"{tmp_path}/*.jsonl", documents="files", validation_fraction=0), "train")


def test_relative_globs_start_where_the_task_was_made(tmp_path, monkeypatch):
    _write_lines(tmp_path / "a.txt", ["here"])
    monkeypatch.chdir(tmp_path)
    task = text_files.task("*.txt", validation_fraction=0)
    monkeypatch.chdir("/")
    assert _read(task, "train") == ["here"]


def test_making_a_task_reads_nothing(data_dir):
    task = text_files.task("/no/such/file.txt")
    assert tuple(task.splits) == ("train", "validation")
    assert task.output_features["targets"].vocabulary.vocab_size == 359
    assert not data_dir.exists()


def test_mended_text_is_counted_in_one_warning(tmp_path, capfd, caplog):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\nworse \xfe\xff\nfine\n")
    task = text_files.task(f"{tmp_path}/a.txt", validation_fraction=0)
    assert sorted(_read(task, "train")) == ["bad \ufffd", "fine", "good", "worse \ufffd\ufffd"]
    out, err = capfd.readouterr()
    assert out == ""
    assert not caplog.records
    (warning,) = re.findall("text_files: .*", err)
    assert "2 of 4 documents" in warning
    assert f"{tmp_path}/a.txt, line 2" in warning
    _read(text_files.task(f"{tmp_path}/a.txt", validation_fraction=0), "train")
    assert "text_files:" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("a.txt", b"ok\nbad \xff\n", {"invalid_utf8": "refuse"}, "a.txt, line 2, is not UTF-8"),
        ("a.jsonl", b'{"text": "ok"}\n{"text"\n', {}, "a.jsonl, line 2, is not JSON"),
        ("a.jsonl", b'{"body": "ok"}\n', {}, "a.jsonl, line 1, has no field 'text'"),
        ("a.txt.gz", gzip.compress(b"ok\n" * 100, mtime=0)[:-9], {}, "a.txt.gz is not a whole gzip file"),
        ("a.csv", b"ok", {}, "a.csv, which files matches, is of no known format"),
        ("a.txt", b" \n\n", {}, "files matches 1 file(s) without any text"),
        (
            "a.txt",
            b"x\ny\n",
            {"validation_fraction": 1e-9},
            "picks none of the 2 document(s) for the validation",
        ),
        (
            "a.txt",
            b"x\ny\n",
            {"validation_fraction": 0.999999},
            "leaves none of the 2 document(s) for training",
        ),
    ],
)
def test_a_fault_ends_the_preparation_with_nothing_left(tmp_path, data_dir, name, data, settings, message):
    (tmp_path / name).write_bytes(data)
    task = text_files.task(f"{tmp_path}/a*", **settings)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        _read(task, "train")
    assert "\n" not in str(caught.value)
    assert not data_dir.exists() or not list(data_dir.rglob("*"))


def test_the_fraction_named_for_an_empty_split_fills_it(tmp_path):
    path = _write_lines(tmp_path / "a.txt", _LINES[:20])
    with pytest.raises(InputError) as caught:
        _read(text_files.task(path, validation_fraction=1e-9), "train")
    (fraction,) = re.findall(r"set it to (0\.\d+) or more", str(caught.value))
    assert _read(text_files.task(path, validation_fraction=float(fraction)), "validation")


@pytest.mark.parametrize(
    "settings",
    [
        {"files": None},
        {"files": 3},
        {"files": [3]},
        {"files": []},
        {"files": ""},
        {"files": "a.txt", "validation_files": []},
        {"files": "a.txt", "validation_fraction": 1.0},
        {"files": "a.txt", "validation_fraction": -0.1},
        {"files": "a.txt", "documents": "paragraphs"},
        {"files": "a.txt", "invalid_utf8": "ignore"},
        {"files": "a.txt", "field": ["text", "title"]},
    ],
)
def test_a_wrong_setting_is_named_at_once(settings):
    with pytest.raises(InputError, match=f"^{list(settings)[-1]} is "):
        text_files.task(**settings)


def test_pairs_come_out_whole_and_those_with_equal_inputs_on_one_side(tmp_path):
    pairs = [(f"question {number // 2}", f"answer {number}") for number in range(400)]
    blank = [("a question", " "), ("", "an answer")]
    lines = [json.dumps({"q": question, "a": answer, "n": 1}) for question, answer in [*pairs, *blank]]
    task = text_files.pairs(
        _write_lines(tmp_path / "a.jsonl", lines), fields=["q", "a"], validation_fraction=0.2
    )
    read = {}
    for split in ("train", "validation"):
        dataset = task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False).as_numpy_iterator()
        names = ("inputs_pretokenized", "targets_pretokenized")
        read[split] = [tuple(example[name].decode() for name in names) for example in dataset]
    assert sorted(read["train"] + read["validation"]) == sorted(pairs)
    asked = {split: {question for question, _ in read[split]} for split in read}
    assert len(asked["validation"]) > 20 and not asked["train"] & asked["validation"]
    assert {name: feature.add_eos for name, feature in task.output_features.items()} == {
        "inputs": True, "targets": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("a.txt", "x\ny", {}, "a.txt has no fields 'inputs' and 'targets': give .jsonl files"),
        ("a.jsonl", '{"inputs": "x"}', {}, "a.jsonl, line 1, has no field 'targets': name one that"),
        ("a.jsonl", '{"inputs": "x", "targets": 1}', {}, "line 1, has int, not text, in field 'targets'"),
        ("a.jsonl", '["x"]', {}, 'write one as {"inputs": "...", "targets": "..."} a line'),
        ("a.jsonl", "", {"fields": "question"}, "fields is 'question': set it to the names of two"),
        ("a.jsonl", "", {"fields": ["x", "x"]}, "fields is ['x', 'x']: set it to the names of two"),
        ("a.jsonl", "", {"fields": ["question"]}, "fields is ['question']: set it to the names of two"),
        ("a.jsonl", "", {"invalid_utf8": "ignore"}, "invalid_utf8 is 'ignore'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_pairs_is_named(tmp_path, data_dir, name, data, settings, message):
    (tmp_path / name).write_text(data)
    with pytest.raises(InputError, match=re.escape(message)):
        _read(text_files.pairs(f"{tmp_path}/{name}", **settings), "train")
    assert not data_dir.exists() or not list(data_dir.rglob("*"))
