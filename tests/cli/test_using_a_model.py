"""What a person gets from a model dir, and sees of a run."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from rich.console import Console

from pretrain import config
from pretrain.cli.console import ConsoleObserver
from pretrain.training.loop import Facts

HEAVY = ("jax", "numpy", "tensorflow", "seqio", "flax", "orbax", "rich")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "sys.argv = ['pretrain', '--help']\n"
        "from pretrain.cli import main\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    root = config.shipped().parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n"), done.stdout
    assert "verify-resume" in done.stdout


def test_a_decoder_continues_its_prompts(call, causal):
    """By the seed alone, when it draws; a continuation begins with its prompt, which may be several."""
    ask = ("generate", causal, "--prompt", "docu", "--prompt", "ment")
    drawn = [call(*ask, "--temperature", 2, "--seed", seed, "--max-tokens", 8) for seed in (1, 1, 2)]
    assert [result.code for result in drawn] == [0, 0, 0], drawn
    assert drawn[0].out == drawn[1].out != drawn[2].out
    greedy, likeliest = (
        call(*ask, *how, "--max-tokens", 8) for how in ((), ("--temperature", 2, "--top-k", 1))
    )
    assert greedy.code == 0 and greedy.out == likeliest.out
    assert greedy.out.startswith("docu") and "\nment" in greedy.out


def test_an_encoder_decoder_fills_gaps(call, spans):
    result = call(
        "generate", spans, "--prompt", "document <extra_id_0> of some <extra_id_1>", "--max-tokens", 6
    )
    assert result.code == 0, result
    assert result.out.startswith("document ") and " of some " in result.out
    assert "<extra_id_0>" not in result.out.split(" of some ")[0]


def test_evaluation_is_a_table_or_json_of_the_same_figures(call, spans):
    table, told = call("evaluate", spans, "--examples", 2), call("evaluate", spans, "--json")
    assert (table.code, told.code) == (0, 0), (table, told)
    figures = json.loads(told.out)
    assert figures["step"] == 2
    for name in ("loss", "accuracy", "bits_per_byte"):
        assert f"{figures[name]:.4f}" in table.out
    assert f"{figures['unigram_bits_per_byte']:.4f}" in table.out
    assert f"{figures['bits_per_byte']:.3f} bits per byte is above the unigram entropy." in table.out
    assert table.out.count("held-out example") == 2
    assert "<extra_id_0>" in table.out and "truth" in table.out
    fewer = json.loads(call("evaluate", spans, "--json", "--split", "train", "--batches", 2).out)
    assert fewer["loss"] != figures["loss"]


def test_a_model_is_used_by_the_settings_of_a_gin_file(call, spans, tmp_path):
    """Another corpus; and the very file of a model dir says what the model dir says."""
    (tmp_path / "other.txt").write_text("another corpus, of other documents\n" * 200)
    other = ("runs/text_files.gin", f"--gin.FILES={str(tmp_path / 'other.txt')!r}")
    model = [line for line in (Path(spans) / "config.gin").read_text().splitlines() if line]
    (tmp_path / "same.gin").write_text("\n".join(model))
    same = call("evaluate", tmp_path / "same.gin", "--model-dir", spans, "--json")
    assert same.code == 0 and same.out == call("evaluate", spans, "--json").out
    prompt = ("--prompt", "a <extra_id_0>", "--max-tokens", 3)
    filled = call("generate", tmp_path / "same.gin", "--model-dir", spans, *prompt)
    assert filled.code == 0 and filled.out == call("generate", spans, *prompt).out
    for command in (("evaluate",), ("generate", *prompt)):
        alone = call(command[0], *other, *command[1:])
        assert alone.code == 2 and "holds none: give --model-dir too" in alone.err
        none = call(command[0], *other, *command[1:], "--model-dir", tmp_path)
        assert none.code == 2 and "is not a model dir" in none.err
    another = call("evaluate", *other, "--model-dir", spans)
    assert another.code == 2 and "by this config" in another.err


def test_a_run_says_what_it_is_and_writes_what_it_says(train):
    result = train()
    assert result.code == 0, result
    said = dict(line.split(maxsplit=1) for line in result.out.splitlines()[:8])
    assert said["task"].startswith("text_files") and "train" in said["task"]
    assert "encoder_decoder" in said["model"] and "parameters" in said["model"]
    assert "data=8" in said["devices"]
    assert said["batch"] == "8 x {'inputs': 48, 'targets': 24} = 576 tokens a step"
    assert said["work"].endswith("FLOP a step")
    lines = [json.loads(line) for line in Path("model/metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if line["kind"] == "train" and line["step"] == 2]
    assert f"step 2/2  loss {step['loss']:.3f}" in result.out
    (held_out,) = [line for line in lines if line["kind"] == "eval"]
    assert f"step 2 held out: loss {held_out['loss']:.3f}" in result.out
    assert result.out.rstrip().endswith("Done: step 2. Next: pretrain evaluate model")
    written = board(Path("model/tensorboard"))
    assert written["train/loss", 2] == pytest.approx(step["loss"])
    assert written["eval/bits_per_byte", 2] == pytest.approx(held_out["bits_per_byte"])
    again = train()
    assert again.out == "model is complete: step 2 of 2. Nothing to do.\n"


def board(directory: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard's files hold, by name and step."""
    found = {}
    for path in directory.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_terminal_has_a_bar_and_no_line_for_each_step():
    run = config.load("runs/quickstart.gin")
    facts = Facts(
        run=run, model_dir=Path("here"), first_step=0, parameters=1_919_424, flops_per_step=2.9e10,
        tokens_per_step=4544, mesh={"data": 1}, device="1 x cpu",
    )  # fmt: skip
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    observer = ConsoleObserver(console)
    observer.started(facts)
    for step in (10, 250):
        observer.progressed(
            step,
            {
                "loss": 2.5,
                "tokens_per_second": 8920.0,
                "steps_per_second": 2.0,
                "model_flops_utilisation": 0.5,
            },
        )
    observer.stop()
    drawn = console.file.getvalue()
    assert "1.92 M parameters" in drawn and "29.0 GFLOP a step" in drawn
    assert "step 250/500" in drawn and " 50%" in drawn
    assert "loss 2.500  8.92 k tokens/s  50% MFU" in drawn
    assert " left" not in drawn
