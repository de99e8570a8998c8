"""Kills that fall where they are aimed, and a verification that passes and fails when it should."""

import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pretrain import config, verification
from pretrain.cli import main
from pretrain.comparison import Comparison
from pretrain.errors import InputError
from pretrain.verification import Kill, Launch, Report, RunFailed, Sight

ROOT = config.shipped().parent
RUN = """\
from __gin__ import dynamic_registration
from pretrain import optim
from pretrain import run
from pretrain.models import decoder
from pretrain.objectives import causal_lm
from tasks import text_files

include 'models/decoder_tiny.gin'

run.RunConfig:
  task = @text_files.task()
  objective = @causal_lm.CausalLM()
  model = @decoder.DecoderConfig()
  optimizer = @optim.AdamW()
  lengths = {'targets': 64}
  pack = True
  steps = 16
  batch_size = 4
  shuffle_buffer = 20
  eval_period = 8
  eval_batches = 2
  checkpoint_period = 4
  log_period = 3

causal_lm.CausalLM.join_documents = False

optim.AdamW.schedule = @optim.Constant()
optim.Constant.peak = 1e-2

text_files.task:
  files = 'text.txt'
  validation_fraction = 0.1

decoder.DecoderConfig:
  embed_dim = 16
  mlp_dim = 16
  head_dim = 4
  num_layers = 1
  dropout = 0.1
"""


class Watcher:
    """An observer that remembers."""

    def __init__(self):
        self.phases, self.kills, self.steps = [], [], []

    def began(self, what):
        self.phases.append(what)

    def reached(self, step):
        self.steps.append(step)

    def killed(self, kill):
        self.kills.append(kill)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """What the runs of this file need to make only once."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def place(tmp_path, shared, monkeypatch) -> Path:
    """A directory with a run file and its text, where the runs' processes stand."""
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    documents = (" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(300))
    (tmp_path / "text.txt").write_text("\n".join(documents))
    (tmp_path / "run.gin").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, value in {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TFDS_DATA_DIR": str(shared / "tfds"),
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def verify(place: Path, run_file: str = "run.gin", settings: tuple[str, ...] = (), **options) -> Report:
    """`verify-resume` of a run file with such gin flags, without its console."""
    flags = [f"--gin.{setting}" for setting in settings]
    run = config.load(run_file, [setting.replace("=", " = ", 1) for setting in settings])
    watcher = Watcher()
    report = verification.verify(run, [run_file, *flags], place, watcher, **options)
    assert watcher.kills == list(report.kills)
    assert len(watcher.phases) == 1 + len(report.kills) + 1 + 1
    assert max(watcher.steps) <= run.steps
    return report


def check_equal(report: Report, run_file: str = "run.gin", settings: tuple[str, ...] = ()) -> None:
    assert report.equal, [each for each in report.comparisons if each.different]
    run = config.load(run_file, [setting.replace("=", " = ", 1) for setting in settings])
    counts = {each.what: each.equal for each in report.comparisons}
    assert counts["batches"] == run.steps
    assert counts["held-out figures"] == run.steps // run.eval_period
    assert min(counts.values()) > 0


def test_a_killed_run_is_the_same_run(place):
    """Packed, shuffled, with dropout: kills in two of a step, a save and an evaluation."""
    report = verify(place, kills=2, seed=1)
    check_equal(report)
    assert [kill.hit for kill in report.kills] == [kill.aim for kill in report.kills]
    assert len({kill.hit for kill in report.kills} & {"step", "save", "evaluation"}) == 2


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_is_the_same_run_and_loses_nothing(place):
    report = verify(place, kills=2, by=signal.SIGTERM, seed=1)
    check_equal(report)
    assert all(kill.resumes == kill.step > 0 for kill in report.kills)


NOT_SAVED = """\
import sys
from pretrain.training import stopping

stopping.Stop.__call__ = lambda self, step: self._asked and sys.exit(0)

from pretrain.cli import main

if __name__ == "__main__":
    main.main()
"""


@pytest.mark.slow
def test_a_run_that_ends_without_saving_is_found_out(place):
    (place / "not_saved.py").write_text(NOT_SAVED)
    # So many steps that a busy machine cannot have made them all when the signal arrives.
    settings = ("steps=64", "checkpoint_period=16")
    with pytest.raises(RunFailed, match=r"^Asked to end, the run made step \d+ and saved step \d+\.$"):
        verify(
            place, settings=settings, kills=2, by=signal.SIGTERM, seed=1,
            program=(sys.executable, "not_saved.py"),
        )  # fmt: skip


SMALL = {
    "encoder_decoder": "encoder_decoder.EncoderDecoderConfig",
    "decoder": "decoder.DecoderConfig",
    "encoder": "encoder.EncoderConfig",
    "two_stream": "two_stream.TwoStreamConfig",
    "dual_encoder": "dual_encoder.DualEncoderConfig",
}


def small(family: str) -> tuple[str, ...]:
    model = SMALL[family]
    return (
        "STEPS=16", "BATCH_SIZE=4", "shuffle_buffer=100", "eval_period=8", "eval_batches=2",
        "checkpoint_period=4", f"{model}.embed_dim=16", f"{model}.mlp_dim=32", f"{model}.head_dim=8",
        f"{model}.dropout=0.1",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("quickstart", "encoder_decoder"),
        ("quickstart_causal_lm", "decoder"),
        ("quickstart_prefix_lm", "decoder"),
        ("quickstart_prefix_lm_encoder_decoder", "encoder_decoder"),
        ("multi_objective_tiny", "decoder"),
        ("masked_and_contrastive_tiny", "dual_encoder"),
    ],
)
def test_every_objective(place, name, family):
    run_file, settings = f"runs/{name}.gin", small(family)
    check_equal(verify(place, run_file, settings, kills=3), run_file, settings)


@pytest.mark.slow
def test_documents_that_are_joined_and_cut(place):
    settings = ("pack=False", "lengths={'targets': 16}", "causal_lm.CausalLM.join_documents=True")
    check_equal(verify(place, settings=settings, kills=3), settings=settings)


MIXTURE = """\
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)


def source(first):
    def read(split, shuffle_files, seed=None):
        lines = tf.data.TextLineDataset("text.txt")
        return lines.filter(lambda line: (tf.strings.length(line) % 2 == 0) == first)

    return seqio.FunctionDataSource(read, splits=["train", "validation"])


for name, first in (("even", True), ("odd", False)):
    seqio.TaskRegistry.add(
        name,
        source=source(first),
        preprocessors=[
            lambda lines: lines.map(lambda line: {"targets": line}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"targets": seqio.Feature(VOCABULARY, add_eos=True)},
    )
seqio.MixtureRegistry.add("both", [("even", 1.0), ("odd", 2.0)])
"""


@pytest.mark.slow
def test_a_mixture(place):
    (place / "both_tasks.py").write_text(MIXTURE)
    text = RUN.replace("from tasks import text_files", "import both_tasks")
    text = re.sub(r"text_files\.task:\n(  .+\n)+", "", text).replace("@text_files.task()", "'both'")
    (place / "mixture.gin").write_text(text)
    check_equal(verify(place, "mixture.gin", kills=3))


@pytest.mark.slow
def test_two_processes(place, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    report = verify(place, processes=2, kills=4)
    check_equal(report)
    assert {kill.whom for kill in report.kills} > {"all"}


LOST = """\
import sys
from pretrain import pipeline

restore = pipeline.Batches.restore


def lost(batches, path):
    {how}


pipeline.Batches.restore = lost

from pretrain.cli import main

if __name__ == "__main__":
    main.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("batches.position = 0", "batch is"),  # the checkpoint has parameters, but no iterator
        ("restore(batches, path); batches._draw()", "batch is"),  # one is dropped
        ("restore(batches, path); batches._draw(); batches.position -= 1", "batch_hash is"),
    ],
)
def test_a_run_that_loses_its_place_is_found_out(place, how, said):
    (place / "lost.py").write_text(LOST.replace("{how}", how))
    report = verify(place, kills=2, program=(sys.executable, "lost.py"))
    assert not report.equal
    found = {each.what: each for each in report.comparisons}
    assert re.match(rf"step (5|9|13): {said}", found["batches"].first), found
    assert found["parameters"].different and found["optimizer state"].different


def test_moments_are_read_off_the_model_dir(tmp_path, place):
    """In the order in which a run passes through them, over a dir that a killed one left."""
    model_dir = tmp_path / "model"
    checkpoints = model_dir / "checkpoints"
    (checkpoints / "4").mkdir(parents=True)
    (checkpoints / "8.orbax-checkpoint-tmp").mkdir()
    ledger, metrics = model_dir / "ledger.jsonl", model_dir / "metrics.jsonl"
    ledger.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 9)))
    metrics.write_text('{"step": 0, "kind": "event"}\n')
    sight = Sight(model_dir, config.load("run.gin"))
    assert sight.look() == ("start", 4)

    def rewrite(path: Path, *lines: str) -> None:
        path.with_suffix(".tmp").write_text("".join(lines))
        path.with_suffix(".tmp").replace(path)

    steps = [f'{{"step": {step}}}\n' for step in range(1, 9)]
    rewrite(ledger, *steps[:4])
    assert sight.look() == ("start", 4)
    with ledger.open("a") as file:
        file.write(steps[4] + '{"ste')
        file.flush()
        assert sight.look() == ("step", 5)
    rewrite(ledger, *steps)
    assert sight.look() == ("evaluation", 8)
    with metrics.open("a") as file:
        file.write('{"step": 8, "kind": "eval"}\n')
    assert sight.look() == ("step", 8)
    (checkpoints / "8.orbax-checkpoint-tmp").rename(checkpoints / "moved")
    (checkpoints / "8.orbax-checkpoint-tmp").mkdir()
    assert sight.look() == ("save", 8)


def test_the_last_step_is_evaluated_whatever_the_period(tmp_path, place):
    sight = Sight(tmp_path / "model", config.load("run.gin", ["eval_period = 7"]))
    (tmp_path / "model").mkdir()
    for step, moment in ((13, "step"), (14, "evaluation"), (16, "evaluation")):
        (tmp_path / "model" / "ledger.jsonl").write_text(f'{{"step": {step}}}\n')
        assert sight.look() == (moment, step)


def test_a_new_model_dir_starts(tmp_path, place):
    sight = Sight(tmp_path / "none", config.load("run.gin"))
    assert sight.look() == ("start", 0)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "ledger.jsonl").write_text('{"step": 1}\n')
    assert sight.look() == ("step", 1)


def test_aims_cover_every_moment_and_repeat_with_the_seed(place):
    run = config.load("run.gin")
    pace = dict.fromkeys(verification.MOMENTS, 2.0)

    def aims(seed: int) -> list[verification.Aim]:
        rng, done, made = random.Random(seed), [], []
        for _ in range(20):
            made.append(verification._aim(rng, run, 4, done, 20, pace, 2))
            done.append(Kill(made[-1].moment, made[-1].moment, 5, "all", 4, 0.0))
        return made

    found = aims(0)
    assert found == aims(0) != aims(1)
    assert {aim.moment for aim in found[:3]} == {"step", "save", "evaluation"}
    assert {aim.moment for aim in found} == set(verification.MOMENTS)
    assert {tuple(aim.whom) for aim in found} == {(0, 1), (0,), (1,)}
    for aim in found:
        assert 0 <= aim.delay < 2
        period = {"save": 4, "evaluation": 8}.get(aim.moment, 1)
        assert 4 <= aim.step <= 16 and aim.step % period == 0


def launched(tmp_path: Path, *programs: str, count: int = 1) -> Launch:
    (program,) = programs
    return Launch([sys.executable, "-c", program], count, tmp_path / "logs" / "a")


def finish(launch: Launch) -> None:
    with launch:
        while launch.running():
            time.sleep(0.01)


def test_a_refused_input_is_said_as_the_run_says_it(tmp_path):
    program = "import sys; print('pretrain: STEPS is odd; give an even one.', file=sys.stderr); sys.exit(2)"
    with pytest.raises(InputError, match="^STEPS is odd; give an even one.$"):
        finish(launched(tmp_path, program))


def test_a_run_that_fails_is_no_difference(tmp_path):
    with pytest.raises(
        RunFailed, match=r"^The run failed. It ended with exit code 3. What it .*/a-process-0.txt"
    ):
        finish(launched(tmp_path, "raise SystemExit(3)"))


def test_no_process_outlives_its_launch(tmp_path):
    launch = launched(tmp_path, "import time; time.sleep(100)", count=2)
    with launch:
        assert launch.running()
    assert [process.returncode for process in launch._processes] == [-9, -9]


def test_a_run_that_does_not_end_when_it_is_asked_to_has_failed(tmp_path):
    launch = launched(tmp_path, "import time; time.sleep(100)")
    with launch, pytest.raises(RunFailed, match="did not end 300 seconds after it was asked"):
        launch.check_left(early=False)


def test_processes_are_told_where_they_meet(tmp_path):
    finish(launched(tmp_path, "import sys; print(sys.argv[1:])", count=2))
    flags = [eval((tmp_path / "logs" / f"a-process-{index}.txt").read_text()) for index in range(2)]
    assert [each[-1] for each in flags] == ["0", "1"]
    assert flags[0][:-1] == flags[1][:-1]
    assert re.fullmatch(r"--coordinator localhost:\d+ --processes 2 --process", " ".join(flags[0][:-1]))


@pytest.fixture
def call(monkeypatch, capfd, place):
    """call(*arguments) is `pretrain verify-resume run.gin ARGUMENTS` here: its code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pretrain", "verify-resume", "run.gin", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        capfd.readouterr()
        try:
            main.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return (code, *capfd.readouterr())

    return run


EQUAL = Report(
    [Kill("save", "save", 4, "all", 4, 0.0), Kill("step", "start", 5, "process 1", 4, 1.25)],
    [Comparison("batches", 16, 0)],
)
DIFFERENT = Report(EQUAL.kills, [Comparison("batches", 15, 1, "step 5: batch is 4, then 0")])


@pytest.mark.parametrize("given", [True, False])
def test_equal_runs_are_shown_and_removed(call, given, monkeypatch, place):
    seen = []

    def verified(run, arguments, directory, observer, **options):
        seen.append((directory, arguments, options))
        (directory / "straight").mkdir()
        observer.began("the run that nobody kills")
        observer.killed(EQUAL.kills[0])
        return EQUAL

    monkeypatch.setattr(verification, "verify", verified)
    where = ("--work-dir", str(place / "work")) if given else ()
    code, out, err = call(
        "--kills", "2", "--signal", "TERM", "--processes", "3", "--seed", "7", *where, "--gin.steps=12"
    )
    assert (code, err) == (0, "")
    ((directory, arguments, options),) = seen
    assert arguments == ["run.gin", "--gin.steps=12"]
    assert options == {"kills": 2, "by": signal.SIGTERM, "processes": 3, "seed": 7}
    assert directory.exists() == given
    for line in (
        r"the run that nobody kills",
        r"killed all in a save, after step 4",
        r"2 +step +start +5 +4 +process 1 +1\.2 s *",
        r"batches +16 +0 *",
        r"The same run, bit for bit, through 2 kills\.",
    ):
        assert re.search(f"^{line}$", out, re.M), (line, out)


def test_runs_that_differ_are_kept_and_named(call, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_, **__: DIFFERENT)
    code, out, _ = call("--kills", "4")
    assert code == 1
    assert "Not the same run: batches differ" in out
    assert "step 5: batch is 4, then 0" in out
    assert "came to its end before 2 of 4 kills" in out
    assert Path(re.search(r"Both runs are in (\S+)\.$", out, re.M)[1]).is_dir()


def test_a_run_that_was_never_killed_shows_nothing(call, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_, **__: Report([], EQUAL.comparisons))
    code, out, _ = call()
    assert code == 1
    assert "The run was never killed, so nothing was shown." in out


def test_a_run_that_fails_exits_with_1(call, monkeypatch):
    def failed(*_, **__):
        raise RunFailed("The run failed.")

    monkeypatch.setattr(verification, "verify", failed)
    code, out, err = call()
    assert (code, out, err) == (1, "", "pretrain: The run failed.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gin.checkpoint_period=16"], "give --gin.checkpoint_period=4."),
        (["--gin.step=3"], "step"),
        (["--work-dir", "."], "--work-dir . is not an empty directory; give a new one."),
        (["--kills", "0"], "--kills"),
    ],
)
def test_what_cannot_be_verified_is_refused(call, arguments, said, place):
    before = sorted(os.listdir(place))
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pretrain: ") and err.count("\n") == 1 and said in err, err
    assert sorted(os.listdir(place)) == before
