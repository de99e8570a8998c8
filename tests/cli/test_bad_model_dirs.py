"""Model dirs that are none, lack what is asked for, or hold another run; and prompts that cannot be."""

import contextlib
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("own_directory")

# How a model dir is used: a command and what it needs besides.
USES = [("evaluate", []), ("generate", ["--prompt", "<extra_id_0>"])]
GAP = "<extra_id_0>"


def contents(directory: str) -> dict[str, bytes]:
    files = (path for path in Path(directory).rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(("command", "options"), USES)
@pytest.mark.parametrize("kind", ["nothing", "a file", "another directory"])
def test_what_is_not_a_model_dir_cannot_be_used(call, command, options, kind):
    if kind == "a file":
        Path("model").write_text("x")
    if kind == "another directory":
        Path("model").mkdir()
        Path("model/notes.txt").write_text("x")
    call(command, "model", *options).is_refused("model is not a model dir (it has no config.gin)")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("notes", "notes is not empty and not a model dir; give a new or empty --model-dir"),
        ("notes/a.txt", "notes/a.txt cannot be made, since notes/a.txt is not a directory"),
        ("notes/a.txt/model", "notes/a.txt is not a directory; give another --model-dir"),
    ],
)
def test_training_leaves_alone_what_is_not_a_model_dir(call, text, place, said):
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("x")
    result = call("train", "spans.gin", "--model-dir", place, settings={"FILES": str(text)})
    result.is_refused(said)
    assert contents("notes") == {"notes/a.txt": b"x"}


@pytest.mark.parametrize(("command", "options"), USES)
def test_a_model_dir_without_a_checkpoint(call, spans, command, options):
    Path("model").mkdir()
    shutil.copy(spans / "config.gin", "model")
    call(command, "model", *options).is_refused("model has no checkpoint yet; train it first")


@pytest.mark.parametrize(("command", "options"), USES)
def test_a_step_that_is_not_there(call, spans, command, options):
    result = call(command, spans, *options, "--step", "7")
    result.is_refused(f"{spans} has no checkpoint of step 7; it has 2")


def test_an_unknown_split_to_evaluate(call, spans):
    result = call("evaluate", spans, "--split", "tset")
    result.is_refused("Task 'text_files' has no split 'tset'", "--split", "train, validation")


def test_another_config_is_refused_with_what_differs(resume):
    before = contents("model")
    result = resume(settings={"STEPS": 4, "optim.Constant.peak": 0.5})
    changes = "- STEPS = 2; + STEPS = 4; - optim.Constant.peak = 0.001; + optim.Constant.peak = 0.5"
    result.is_refused("model holds a run with another config", changes, "--allow-config-change")
    assert contents("model") == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 16}, "run.RunConfig.batch_size"),
        ({"FILES": "other.txt"}, "FILES"),
        ({"SEED": 1, "pack": True}, "run.RunConfig.pack, SEED"),
    ],
)
def test_a_place_in_other_data_is_refused(resume, settings, said):
    before = contents("model")
    result = resume("--allow-config-change", settings={"STEPS": 4, **settings})
    result.is_refused(
        "model holds a run whose place in its data cannot be kept when these settings change", said
    )
    assert "STEPS" not in result.err
    assert contents("model") == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"decoder.DecoderConfig.embed_dim": 32},
            "params/embedding/table has shape (384, 16) in checkpoint {} but by this config (384, 32): use",
        ),
        (
            {"decoder.DecoderConfig.tied_logits": True},
            "params/unembedding/kernel has shape (16, 384) in checkpoint {} but by this config none",
        ),
    ],
)
def test_a_checkpoint_of_other_shapes_is_refused(resume, settings, said):
    before = contents("model")
    result = resume("--allow-config-change", settings={"STEPS": 3, **settings})
    result.is_refused(said.format(Path("model/checkpoints/2").absolute()))
    assert contents("model") == before


def test_a_checkpoint_of_another_optimizer_is_refused(resume):
    before = contents("model")
    optimizer = ["--gin.optimizer=@optim.Adafactor()", "--gin.optim.Adafactor.schedule=@optim.Constant()"]
    result = resume("--allow-config-change", "--gin.STEPS=3", *optimizer)
    result.is_refused("opt_state/", "by this config", "use the model and optimizer that wrote it")
    assert contents("model") == before


@pytest.mark.parametrize(("command", "options"), [("evaluate", []), ("generate", ["--prompt", "x"])])
def test_a_model_of_other_shapes_cannot_be_used(call, causal, command, options):
    result = call(command, causal, *options, settings={"decoder.DecoderConfig.embed_dim": 32})
    result.is_refused("params/embedding/table has shape (384, 16) in checkpoint", "(384, 32)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "x = y"], "The prompt 'x = y' has no gap to fill: mark gaps with <extra_id_0>"),
        (["--prompt", ""], "The prompt '' has no gap to fill"),
        (["--prompt", f"{GAP} <extra_id_100>"], "<extra_id_100>, but the vocabulary's sentinels are"),
        (["--prompt", GAP + "x" * 100], "A prompt has 102 tokens"),
        (["--prompt", GAP, "--max-tokens", "99"], "--max-tokens is 99; the model was trained on at most 24"),
        (["--prompt", GAP, "--temperature", "-1"], "--temperature is -1.0"),
        (["--prompt", GAP, "--temperature", "1", "--top-k", "0"], "--top-k is 0"),
        (["--prompt", GAP, "--temperature", "1", "--top-p", "1.5"], "--top-p is 1.5"),
    ],
)
def test_prompts_and_samplings_that_cannot_be(call, spans, options, said):
    call("generate", spans, *options).is_refused(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", ""], "A prompt is empty"),
        (["--prompt", "x" * 100], "A prompt has 100 tokens"),
        (["--prompt", "x", "--prompt", "x" * 100], "A prompt has 100 tokens"),
        (["--prompt", "x", "--max-tokens", "16"], "beside the 16 to be generated there is room for 0"),
    ],
)
def test_prompts_that_a_decoder_cannot_continue(call, causal, options, said):
    call("generate", causal, *options).is_refused(said)


def test_another_config_that_came_meanwhile_is_refused_under_the_lock(resume, monkeypatch):
    """The one that held the model dir when this command looked has saved and gone when it gets the lock."""
    from pretrain.training import model_dirs

    hold = model_dirs.held

    @contextlib.contextmanager
    def held(model_dir):
        with hold(model_dir):
            config = model_dir / "config.gin"
            config.write_text(config.read_text().replace("peak = 0.001", "peak = 0.25"))
            yield

    monkeypatch.setattr(model_dirs, "held", held)
    resume(settings={"STEPS": 2}).is_refused("holds a run with another config", "peak = 0.25")


def test_a_lock_that_was_removed_is_nobodys(tmp_path):
    """Whoever removed it has gone, and a third run may have made one of the same name."""
    from pretrain.data.manifest import lock_alone

    with (tmp_path / "lock").open("w") as file:
        lock_alone(file)
    with (tmp_path / "lock").open("w") as file:
        (tmp_path / "lock").unlink()
        with pytest.raises(BlockingIOError):
            lock_alone(file)


def test_a_model_dir_without_its_config_says_where_another_is(call, spans):
    shutil.copytree(spans, "model")
    Path("model/config.gin").unlink()
    call("evaluate", "model").is_refused(
        "no config.gin: bring it back", "model/checkpoints/2/config/metadata"
    )
