"""Each file format gives back the documents that were put in; each fault is named with its file and line."""

import gzip
import json
import re

import pytest
import tensorflow as tf

from pretrain.errors import InputError
from tasks.documents import Document, Format, find_files, read_documents

_DOCUMENTS = ["one", "zwei, drei  ", "\tfour", "日本語 \u2028 same line", 'quotes " and \\ slashes', "one"]


def _write(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def _read(path, **settings):
    return list(read_documents(str(path), Format(**settings)))


def _texts(documents):
    return [text for document in documents for text in document.texts]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_round_trip_without_the_blank_ones(tmp_path, name, newline):
    lines = ["", _DOCUMENTS[0], " \t", *_DOCUMENTS[1:]]
    data = newline.join(line.encode() for line in lines)
    documents = _read(_write(tmp_path / name, data))
    assert _texts(documents) == _DOCUMENTS
    assert [document.line for document in documents] == [2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_whole_file_is_one_document(tmp_path, name):
    text = "first\n\nsecond\r\nthird\n"
    assert _read(_write(tmp_path / name, text.encode()), documents="files") == [Document([text], 1, False)]
    assert _read(_write(tmp_path / name, b" \n\n"), documents="files") == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_round_trip(tmp_path, name):
    texts = [*_DOCUMENTS, "several\nlines"]
    data = "\n\n".join(json.dumps({"id": i, "body": text}) for i, text in enumerate(texts))
    documents = _read(_write(tmp_path / name, data.encode()), fields=("body",), documents="files")
    assert _texts(documents) == texts
    assert _read(_write(tmp_path / name, b'{"text": "\\ud83d\\ude00"}')) == [Document(["😀"], 1, False)]
    assert _read(_write(tmp_path / name, b'{"text": " "}')) == []


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert _read(_write(tmp_path / "a.txt", b"\xef\xbb\xbfhi\n"))[0].texts == ["hi"]
    assert _read(_write(tmp_path / "a.txt", b"\xef\xbb\xbfhi\n"), documents="files")[0].texts == ["hi\n"]
    assert _read(_write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hi"}\n'))[0].texts == ["hi"]


def test_invalid_utf8_is_mended_and_marked(tmp_path):
    path = _write(tmp_path / "a.txt", b"good\nbad \xff\xfe\n")
    assert _read(path) == [Document(["good"], 1, False), Document(["bad \ufffd\ufffd"], 2, True)]
    path = _write(tmp_path / "a.jsonl", b'{"text": "half \\ud83d"}')
    assert _read(path) == [Document(["half \ufffd"], 1, True)]


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("a.txt", b"ok\nbad \xff\n", {"invalid_utf8": "refuse"}, "a.txt, line 2, is not UTF-8 (byte 0xff)"),
        (
            "b.txt",
            b"x\ny\nbad \xfe\n",
            {"invalid_utf8": "refuse", "documents": "files"},
            "b.txt, line 3, is not UTF-8 (byte 0xfe)",
        ),
        (
            "c.jsonl",
            b'{"text": "\\ud83d"}',
            {"invalid_utf8": "refuse"},
            "c.jsonl, line 1, has half a surrogate",
        ),
        ("d.jsonl", b'{"text": "ok"}\n{"text": \n', {}, "d.jsonl, line 2, is not JSON (Expecting value)"),
        ("e.jsonl", b"[" * 100_000, {}, "e.jsonl, line 1, is not JSON"),
        ("f.jsonl", b'\n"text"\n', {}, 'f.jsonl, line 2, is not a JSON object: write one as {"text": "..."}'),
        (
            "g.jsonl",
            b'{"title": "", "body": ""}',
            {},
            "g.jsonl, line 1, has no field 'text': name one that it has",
        ),
        ("g.jsonl", b'{"title": "", "body": ""}', {}, "(title, body)"),
        (
            "h.jsonl.gz",
            b'{"n": 3}',
            {"fields": ("n",)},
            "h.jsonl.gz, line 1, has int, not text, in field 'n'",
        ),
    ],
)
def test_bad_text_is_named_with_its_line(tmp_path, name, data, settings, message):
    path = _write(tmp_path / name, data)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        _read(path, **settings)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 10, 60, -4])
def test_a_gzip_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(b"\n".join(str(i * i).encode() for i in range(500)))
    path.write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"a\.txt\.gz is not a whole gzip file"):
        _read(path)
    path.write_bytes(whole[:100] + b"\x00\xff" + whole[102:])
    with pytest.raises(InputError, match=r"a\.txt\.gz is not a whole gzip file"):
        _read(path)


def test_globs_give_each_file_once_and_in_order(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl", "sub/deep/c.txt.gz", "odd[1].txt"):
        (tmp_path / name).touch()
    found = find_files([f"{tmp_path}/**", f"{tmp_path}/b.txt", f"{tmp_path}/odd[1].txt"], "files")
    assert found == [f"{tmp_path}/{name}" for name in ("a.jsonl", "b.txt", "odd[1].txt", "sub/deep/c.txt.gz")]


def test_globs_that_find_nothing_to_read_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").touch()
    with pytest.raises(InputError, match=r"files '.*/x\*\.txt' matches no file"):
        find_files([f"{tmp_path}/x*.txt"], "files")
    with pytest.raises(InputError, match=r"validation_files '.*/sub' matches only directories"):
        find_files([f"{tmp_path}/sub"], "validation_files")
    with pytest.raises(InputError, match=r"a\.csv, which files matches, is of no known format"):
        find_files([f"{tmp_path}/sub/*"], "files")


def test_remote_files_are_read_through_tensorflow():
    tf.io.gfile.makedirs("ram://corpus")
    for name, data in (("a.txt", b"one\ntwo\n"), ("b.jsonl.gz", gzip.compress(b'{"text": "three"}\n'))):
        with tf.io.gfile.GFile(f"ram://corpus/{name}", "wb") as stream:
            stream.write(data)
    files = find_files(["ram://corpus/*"], "files")
    assert [text for path in files for text in _texts(_read(path))] == ["one", "two", "three"]
    with pytest.raises(InputError, match=r"ram://corpus/none\.txt cannot be read"):
        _read("ram://corpus/none.txt")
