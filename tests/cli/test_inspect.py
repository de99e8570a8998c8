"""`pretrain inspect` shows the rows of a run file or a model dir, legible in a pipe."""

import re

import pytest
from click.testing import CliRunner

from pretrain import config
from pretrain.cli.main import cli, main
from pretrain.errors import InputError

LINES = [f"line {number}\t[bold] \x1b[31m é" + " word" * (number % 5) for number in range(60)]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(LINES))
    return [
        f"--gin.FILES='{path}'",
        "--gin.text_files.task.validation_fraction=0.2",
        "--gin.BATCH_SIZE=4",
        "--gin.shuffle_buffer=10",
    ]


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "tfds"))


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["inspect", *arguments], catch_exceptions=False)


def test_examples_then_figures(flags):
    answer = invoke("runs/text_files_prefix_lm.gin", *flags, "--examples=3", "--gin.lengths={'targets': 64}")
    assert answer.exit_code == 0
    assert len(re.findall(r"row \d+, example 1 of 1", answer.output)) == 3
    assert answer.output.count("⟦") == answer.output.count("⟧") == 3 + 1  # an example each, and the legend
    assert "\x1b" not in answer.output and "␛[31m" in answer.output
    assert "⇥[bold]" in answer.output and "</s>" in answer.output
    shown = " ".join(answer.output.split())
    assert "20 batches of 4, split 'train', not packed" in shown
    assert "row length 64" in shown and "lost" not in shown
    assert re.search(r"text_files \d+ (\(all\) )?\d+ \d+ \d+ 1.00 \d+%", shown)


def test_a_model_dir_and_a_held_out_split(flags, tmp_path):
    bindings = [flag.removeprefix("--gin.") for flag in flags]
    _, text = config.load_with_text("runs/text_files.gin", bindings)
    (tmp_path / config.FILE).write_text(text)
    lengths = "--gin.lengths={'inputs': 32, 'targets': 16}"
    answer = invoke(str(tmp_path), lengths, "--split=validation", "--examples=1", "--gin.pack=True")
    assert answer.exit_code == 0
    assert "split 'validation', packed" in answer.output
    assert "<extra_id_0>" in answer.output and "(all)" in answer.output


def test_what_is_not_there_is_named(flags, tmp_path):
    with pytest.raises(InputError, match="no split 'test'"):
        invoke("runs/text_files.gin", *flags, "--split=test")
    with pytest.raises(InputError, match="not a model dir"):
        invoke(str(tmp_path))
    with pytest.raises(InputError, match="No run file"):
        invoke("runs/none.gin")


def test_a_page_beside_the_tables(flags, tmp_path):
    path = tmp_path / "[bold]page.html"
    arguments = ["runs/text_files.gin", *flags, "--examples=1", "--batches=2"]
    plain, answer = invoke(*arguments), invoke(*arguments, f"--html={path}")
    assert answer.exit_code == 0
    assert answer.output == f"{plain.output}\nwrote {path}\n"
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "&lt;extra_id_0&gt;" in page and "␛[31m" in page
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_where_no_page_can_be_is_told_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pretrain.inspection.inspect", lambda *_: pytest.fail("read all the same"))
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "none" / "page.html", f"there is no directory {tmp_path / 'none'}, make it first"),
        (tmp_path / "file" / "page.html", f"there is no directory {tmp_path / 'file'}, make it first"),
        (tmp_path, "is not a file: give the name of a file"),
    ):
        monkeypatch.setattr("sys.argv", ["pretrain", "inspect", "runs/quickstart.gin", f"--html={path}"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert f"--html {path}" in error and said in error and error.count("\n") == 1
