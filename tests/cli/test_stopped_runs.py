"""Runs that stop: refused and corrected, changed on purpose, not finite, interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain import config

pytestmark = pytest.mark.usefixtures("own_directory")


def lines(name: str) -> list[dict]:
    path = Path("model") / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trained() -> list[int]:
    return [line["step"] for line in lines("ledger.jsonl")]


def events() -> list[tuple[int, str]]:
    found = [line for line in lines("metrics.jsonl") if line["kind"] == "event"]
    return [(line["step"], line["event"]) for line in found if line["event"] != "compiled"]


def saved() -> list[int]:
    return sorted(int(path.name) for path in Path("model/checkpoints").iterdir())


def test_other_settings_go_on_where_they_are_allowed(resume):
    result = resume("--allow-config-change", settings={"STEPS": 3, "optim.Constant.peak": 0.5})
    assert result.code == 0, result
    assert "Done: step 3" in result.out
    assert saved() == [2, 3]
    assert "optim.Constant.peak = 0.5" in Path("model/config.gin").read_text()


def test_a_run_without_checkpoints_gives_way_to_the_corrected_one(resume):
    shutil.rmtree("model/checkpoints")
    result = resume(settings={"optim.Constant.peak": 0.5, "STEPS": 1})
    assert result.code == 0, result
    assert "optim.Constant.peak = 0.5" in Path("model/config.gin").read_text()
    assert saved() == [1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(resume):
    result = resume("--allow-config-change", settings={"STEPS": 20, "optim.Constant.peak": 1e30})
    assert result.code == 1
    said = r"pretrain: The (loss|gradient norm|parameter norm) is (nan|inf) at step [345]\. "
    assert re.fullmatch(said + r"The last good checkpoint, of step 2, is kept; [^\n]*\n", result.err)
    assert saved() == [2]
    assert resume("--allow-config-change", settings={"STEPS": 3}).code == 0
    assert trained() == [3]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_from_there(call, text, number):
    """The text has a line that is not UTF-8, which is mended and counted on the way."""
    text.write_bytes(text.read_bytes() + b"\nbad \xff\n")
    arguments = ["train", Path("causal.gin").absolute(), "--model-dir", Path("model").absolute()]
    arguments += [f"--gin.FILES='{text}'", "--gin.log_period=1000", "--gin.STEPS=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.cli.main", *arguments],
        cwd=config.shipped().parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(trained()) < 3:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "a second signal ends the run at once" in err
    assert "text_files: 1 of 201 documents held text that is not UTF-8, now U+FFFD" in err
    stopped = int(re.search(r"Stopped and saved at step ([\d,]+)", out)[1].replace(",", ""))
    assert saved() == [stopped]
    assert trained() == list(range(1, stopped + 1))
    assert events()[-1] == (stopped, "stopped")

    result = call(*arguments, "--allow-config-change", settings={"STEPS": stopped + 1})
    assert result.code == 0, result
    assert trained() == list(range(1, stopped + 2))
    assert events()[-2:] == [(stopped, "resumed"), (stopped + 1, "finished")]


def test_the_flags_of_train_reach_the_loop(train, monkeypatch):
    from pretrain.training import loop, watchdog

    given, dogs = {}, []
    made = watchdog.Watchdog.__init__

    def watching(self, seconds=None, *, ends=False, **others):
        dogs.append((seconds, ends))
        made(self, None)

    def captured(*arguments, **named):
        given.update(named)
        return 2

    monkeypatch.setattr(watchdog.Watchdog, "__init__", watching)
    monkeypatch.setattr(loop, "train", captured)
    ways = ["--stall-seconds", "1800", "--end-on-stall", "--skip-steps", "3:5", "--profile", "6:7"]
    assert train(*ways).code == 0
    assert dogs == [(1800.0, True)]
    assert isinstance(given.pop("watchdog"), watchdog.Watchdog)
    given.pop("admit")()  # an empty place is one for this run
    assert given == {"skip_steps": range(3, 5), "profile": range(6, 7)}


@pytest.mark.parametrize("flag", ["--skip-steps", "--profile"])
@pytest.mark.parametrize("steps", ["5", "5:3", "0:3", "a:b"])
def test_steps_that_are_none_are_refused(train, flag, steps):
    train(flag, steps).is_refused_untouched(f"{flag} is '{steps}'; write A:B")
