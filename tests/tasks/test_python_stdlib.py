"""The standard library as a corpus: of this interpreter, without tests, split by path."""

import platform
import sysconfig
from pathlib import Path

import pytest
import seqio
import tensorflow_datasets as tfds

from pretrain.errors import InputError
from tasks import python_stdlib


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(path))
        yield path


@pytest.fixture(scope="module")
def task(data_dir):
    task = python_stdlib.task()
    task.num_input_examples("train")
    return task


def _examples(task, split):
    dataset = task.source.get_dataset(split, shuffle=False)
    return {example["path"].decode(): example["text"].decode() for example in dataset.as_numpy_iterator()}


def test_documents_are_the_files_of_the_library(task, data_dir):
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        examples = _examples(task, split)
        assert len(examples) == task.num_input_examples(split) > 0
        assert not seen.keys() & examples.keys()
        assert {python_stdlib.split_of(path) for path in examples} == {split}
        seen |= examples
    assert 5e6 < sum(map(len, seen.values())) < 30e6
    assert len(_examples(task, "train")) > 0.9 * len(seen)
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics.py"} <= seen.keys()
    assert not any({"test", "tests", "site-packages"} & set(path.split("/")) for path in seen)
    assert seen["json/decoder.py"] == (root / "json/decoder.py").read_bytes().decode()
    assert (data_dir / "python_stdlib" / f"py{platform.python_version()}" / "1.1.0").is_dir()


def test_there_are_files_for_many_hosts(task):
    assert len(task.source.list_shards("train")) >= 16


def test_it_is_registered_and_reads_nothing_when_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for registered in (seqio.TaskRegistry.get("python_stdlib"), python_stdlib.task()):
        assert registered.name == "python_stdlib"
        assert tuple(registered.splits) == ("train", "validation", "test")
        assert registered.output_features["targets"].vocabulary.vocab_size == 359
    assert not (tmp_path / "tfds").exists()


def test_another_interpreter_has_a_directory_of_its_own(task, data_dir):
    config = tfds.core.BuilderConfig(name="py3.99.0")
    other = python_stdlib.PythonStdlib(data_dir=str(data_dir), config=config)
    assert not other.is_prepared()
    assert other.data_path != task.source.builder.data_path


def test_only_text_of_a_sane_size_is_taken(tmp_path, monkeypatch):
    library = {
        "good.py": b"x = 1\n",
        "notes.txt": b"words",
        "pkg/also.py": b"y = 2\n",
        "pkg/tests/test_it.py": b"z = 3\n",
        "site-packages/other.py": b"z = 4\n",
        "blank.py": b"\n \n",
        "latin.py": b"# \xe9\n",
        "huge.py": b"#" * (1024 * 1024 + 1),
        "binary.so": b"\x00",
    }
    for name, data in library.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(data)
    monkeypatch.setattr(python_stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    monkeypatch.setattr(python_stdlib, "split_of", lambda path: "test" if "/" in path else "train")
    builder = python_stdlib.PythonStdlib(data_dir=str(tmp_path))
    assert [key for key, _ in builder._generate_examples("train")] == ["good.py", "notes.txt"]
    assert [key for key, _ in builder._generate_examples("test")] == ["pkg/also.py"]
    with pytest.raises(InputError, match="has no Python source for the validation split"):
        list(builder._generate_examples("validation"))
