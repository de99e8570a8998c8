"""A trace holds the steps that were asked for; how long the compiler took is told."""

import contextlib

import jax
import pytest

from pretrain.errors import InputError
from pretrain.training import loop, profiling, records


def steps_in(path) -> set[int]:
    """The numbers of the train steps of a trace."""
    found = set()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == "train":
                    found.add(dict(event.stats)["step_num"])
    return found


def test_a_trace_holds_its_steps_and_no_others(make_run, train, tmp_path, watcher):
    train(make_run(steps=6), profile=range(3, 5))
    (trace,) = (tmp_path / "model" / records.BOARD).glob("plugins/profile/*/*.xplane.pb")
    assert steps_in(trace) == {3, 4}
    lines = records.read(tmp_path / "model" / records.METRICS)
    events = {line["event"]: line for line in lines if line["kind"] == "event"}
    assert (events["traced"]["first"], events["traced"]["step"]) == (3, 4)
    assert events["compiled"]["step"] == 1 and events["compiled"]["seconds"] > 0
    assert [name for name, _ in watcher.events] == ["compiled", "traced"]


def test_a_trace_to_the_last_step_ends_with_the_run(make_run, train, tmp_path):
    train(make_run(steps=2), profile=range(2, 3))
    (trace,) = (tmp_path / "model" / records.BOARD).glob("plugins/profile/*/*.xplane.pb")
    assert steps_in(trace) == {2}


def test_a_run_that_is_stopped_says_how_far_it_was_traced(make_run, tmp_path, watcher):
    """From the first step, which compiles, though steps to 8 were asked for."""
    model_dir = tmp_path / "model"
    loop.train(make_run(), "", model_dir, watcher, lambda step: step == 3, profile=range(1, 9))
    (trace,) = (model_dir / records.BOARD).glob("plugins/profile/*/*.xplane.pb")
    assert steps_in(trace) == {1, 2, 3}
    (line,) = (each for each in records.read(model_dir / records.METRICS) if each.get("event") == "traced")
    assert (line["first"], line["step"]) == (1, 3)


def test_steps_that_are_not_to_come_are_refused(make_run, train):
    train(make_run(steps=4))
    for steps in (range(3, 6), range(10, 14)):
        with pytest.raises(InputError, match=r"the steps to come are 5 to 12: name some of them"):
            train(make_run(steps=12), profile=steps)
    assert train(make_run(steps=12), profile=range(5, 6)) == 12


def test_each_kind_of_batch_is_compiled_once_and_outside_of_the_time(tmp_path):
    told, paused = [], []

    @contextlib.contextmanager
    def pause():
        paused.append("begins")
        yield
        paused.append("ends")

    def step(state, batch):
        return len(paused)

    profiled = profiling.Profiled(
        step, tmp_path, None, lambda at, event, **_: told.append((at, event)), pause
    )
    kinds = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": 3}, {"b": 2}]
    assert [profiled(at, None, batch) for at, batch in enumerate(kinds, 1)] == [1, 2, 3, 4, 4]
    assert told == [(1, "compiled"), (3, "compiled")]
