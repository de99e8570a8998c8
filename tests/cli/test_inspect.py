"""`pretrain inspect` shows the rows of a run file or a model dir, legible in a pipe."""

import re

import pytest
from click.testing import CliRunner

from pretrain import config
from pretrain.cli.main import cli
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
