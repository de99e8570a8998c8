"""What is wrong with a run file or a command line is said in one sentence that names the place."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("own_directory")

SEED, PEAK, OPTIMIZER = "  seed = %SEED", "  peak = 1e-3", "  optimizer = @optim.AdamW()"
LENGTHS = "  lengths = {'inputs': 48, 'targets': 24}"
TASKS, MODEL = "from tasks import text_files", "include 'models/t5_1_1_tiny.gin'"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (SEED, "  sed = %SEED", "run.RunConfig has no setting 'sed' (did you mean seed?)"),
        (SEED, "  seed = %SED", "%SED is set nowhere (did you mean SEED?)"),
        (SEED, "  seed = 'x'", "run.RunConfig.seed is 'x', but it takes a whole number"),
        (SEED, "  seed = True", "run.RunConfig.seed is True, but it takes a whole number"),
        (SEED, "  seed = zero", "cannot read `seed = zero`"),
        (SEED, "  seed =", "cannot read `seed =`"),
        (SEED, "  seed 3", "cannot read `seed 3`"),
        ("SEED = 0", "SEED = 'x'", "SEED is 'x', but run.RunConfig.seed takes a whole number"),
        ("SEED = 0", "SEED = %gin.REQUIRED", "SEED must be given: --gin.SEED=VALUE"),
        (PEAK, "  peak = '1e-3'", "optim.Constant.peak is '1e-3', but it takes a number"),
        (PEAK, "  peek = 1e-3", "optim.Constant has no setting 'peek' (did you mean peak?)"),
        ("  b2 = 0.98", "  clip_norm = 'x'", "optim.AdamW.clip_norm is 'x', but it takes a number or None"),
        (OPTIMIZER, "  optimizer = @optim.AdmW()", "pretrain.optim has no 'AdmW' (did you mean AdamW?)"),
        (OPTIMIZER, "  optimizer = @optm.AdamW()", "nothing is imported as 'optm' (did you mean optim?)"),
        (OPTIMIZER, "  optimizer = @optim.AdamW", "it takes an instance of Optimizer, written @name()"),
        (OPTIMIZER, "  optimizer = @optim.Constant()", "it takes an instance of Optimizer, written @name()"),
        ("  schedule = @optim.Constant()", "  schedule = @optim.Constant", "but it takes a function"),
        (LENGTHS, "  lengths = {'inputs': '9'}", "is {'inputs': '9'}, but it takes Mapping[str, int]"),
        (TASKS, "from tasks import txt_files", "No module named 'tasks.txt_files'"),
        (TASKS, "import my_tsks", "`import my_tsks` fails (No module named 'my_tsks'); correct the import"),
        (MODEL, "include 'models/t5.gin'", "there is no file 'models/t5.gin'"),
    ],
)
def test_a_mistake_in_a_run_file_is_named_with_its_line(train, change, old, new, said):
    line = change(old, new)
    train().is_refused_untouched(f"spans.gin, line {line}: ", said)


def test_a_macro_that_is_its_own_value(train, change):
    change("SEED = 0", "SEED = %SEED")
    train().is_refused_untouched("spans.gin, line", "%SEED leads back to itself")


def test_a_setting_that_is_missing_is_named_where_it_is_missed(train, change):
    change(PEAK, "  warmup_steps = 3")
    line = Path("spans.gin").read_text().splitlines().index("  schedule = @optim.Constant()") + 1
    said = f"spans.gin, line {line}: optim.Constant needs peak; add `optim.Constant.peak = VALUE`"
    train().is_refused_untouched(said)


def test_a_run_file_that_does_not_register(train, change):
    line = change("from __gin__ import dynamic_registration", "")
    said = (
        f"spans.gin, line {line + 1}: put `from __gin__ import dynamic_registration` above the other imports"
    )
    train().is_refused_untouched(said)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "sets no RunConfig"),
        (
            b"STEPS = 3\n",
            "begins with `from __gin__ import dynamic_registration` and `from pretrain import run`",
        ),
        (b"STEPS = {'a': 3\n", "a bracket or quote is never closed"),
        (b"STEPS = '\xff'\n", "is not text"),
    ],
)
def test_a_file_that_is_no_run(call, contents, said):
    Path("spans.gin").write_bytes(contents)
    call("train", "spans.gin", "--model-dir", "model").is_refused_untouched("spans.gin", said)


def test_an_unknown_run_file(call):
    result = call("train", "runs/text_fils.gin", "--model-dir", "model")
    result.is_refused_untouched("No run file 'runs/text_fils.gin'", "did you mean runs/text_files.gin?")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--gin.STEPPS=3",
            "spans.gin has no macro STEPPS and RunConfig no such field (did you mean STEPS?)",
        ),
        ("--gin.pak=True", "no such field (did you mean pack?)"),
        ("--gin.=3", "no such field"),
        ("--gin.STEPS=", "--gin.STEPS has no value; write --gin.STEPS=VALUE"),
        ("--gin.STEPS", "--gin.STEPS has no value; write --gin.STEPS=VALUE"),
        ("--gin.STEPS='3'", "--gin.STEPS is '3', but run.RunConfig.steps takes a whole number"),
        ("--gin.STEPS=1.5", "--gin.STEPS is 1.5"),
        ("--gin.STEPS=0", "RunConfig.steps is 0; give a whole number of at least 1"),
        ("--gin.STEPS=3\nSEED = 4", "--gin.STEPS=3 SEED = 4: the value is not a Python literal"),
        ("--gin.pack='x'", "--gin.pack is 'x', but it takes True or False"),
        ("--gin.eval_batches=0", "RunConfig.eval_batches is 0; give a whole number of at least 1, or None"),
        ("--gin.FIELD=body", "text needs quotes of its own, as in --gin.FIELD=\"'body'\""),
        ("--gin.lengths={'inputs': 3", "--gin.lengths={'inputs': 3: the value is not a Python literal"),
        ("--gin.lengths=3", "--gin.lengths is 3, but it takes Mapping[str, int]"),
        ("--gin.optim.AdamW.b3=1", "--gin.optim.AdamW.b3: optim.AdamW has no setting 'b3'"),
        ("--gin.optim.AdamX.b2=1", "--gin.optim.AdamX.b2: pretrain.optim has no 'AdamX'"),
        ("--gin.optm.AdamW.b2=1", "--gin.optm.AdamW.b2: nothing is imported as 'optm'"),
        ("--gin.optim.b2=1", "--gin.optim.b2: optim is no function or class"),
        ("--gin.optim.AdamW.b2='x'", "--gin.optim.AdamW.b2 is 'x', but it takes a number"),
        ("--gin.optim.Adafactor.decay_rate=0.5", "nothing in this run refers to optim.Adafactor"),
        ("--gin.optim.Constant.peak=@optim.Constant()", "is @optim.Constant(), but it takes a number"),
        ("--gin.task=@nothing()", "--gin.task: nothing is imported as 'nothing'"),
        ("--gin.task=%NOTHING", "--gin.task: %NOTHING is set nowhere"),
        ("--gin.task='c4_en'", "--gin.FILES: nothing in this run has the value %FILES; leave the flag out"),
        ("--modeldir=x", "Unexpected argument '--modeldir=x': settings are given as --gin.NAME=VALUE"),
        ("-x", "Unexpected argument '-x'"),
        ("stray", "Unexpected argument 'stray'"),
    ],
)
def test_a_mistake_in_a_flag_is_named_with_the_flag(train, flag, said):
    train(flag).is_refused_untouched(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "spans.gin"], "Missing option '--model-dir'; see `pretrain train -h`"),
        (["train", "--model-dir", "model"], "Missing argument 'RUN.gin'; see `pretrain train -h`"),
        (["train", "spans.gin", "--model-dir"], "Option '--model-dir' requires an argument"),
        (["trian"], "No such command 'trian'"),
        (["evaluate"], "Missing argument 'MODEL_DIR|RUN.gin'"),
        (["evaluate", "model", "--batches", "0"], "'--batches': 0 is not in the range"),
        (["evaluate", "model", "--step", "last"], "'--step': 'last' is not a valid integer"),
        (["generate", "model"], "Missing option '--prompt'"),
        (
            ["generate", "model", "--prompt", "x", "--max-tokens", "0"],
            "'--max-tokens': 0 is not in the range",
        ),
    ],
)
def test_a_mistake_in_an_option_is_named_with_the_option(call, arguments, said):
    call(*arguments).is_refused(said)


def test_no_command_shows_the_commands(call):
    result = call()
    assert result.code == 2
    assert "evaluate" in result.err


def test_debug_shows_where_the_mistake_was_found(train):
    result = train("--gin.STEPS='x'", "--debug")
    assert (result.code, result.err.splitlines()[0]) == (2, "Traceback (most recent call last):")
    assert result.err.splitlines()[-1].startswith("pretrain: --gin.STEPS is 'x'")


def test_a_fault_in_the_users_own_module_keeps_its_traceback(train, change):
    Path("my_faulty_tasks.py").write_text("undefined_name")
    change(TASKS, f"{TASKS}\nimport my_faulty_tasks")
    with pytest.raises(NameError, match="undefined_name"):
        train()
