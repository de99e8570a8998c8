"""What the loop does with bad steps, batches to leave out, damage, other runs and other parameters."""

import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pretrain import optim, pipeline
from pretrain.bad_steps import BadSteps, Diverged
from pretrain.checkpointing import Checkpoints, NotSaved
from pretrain.comparison import compare
from pretrain.errors import InputError
from pretrain.fingerprint import batch_hash, hexadecimal
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import loop, model_dirs, records, step
from pretrain.warm_start import WarmStart

_hash = jax.jit(batch_hash)
_compiled: dict[str, step.Programs] = {}


@pytest.fixture(autouse=True)
def programs_are_shared(monkeypatch):
    """Runs with the same programs compile them once: that is what takes the time here."""
    make = step.programs

    def programs(run):
        key = repr((run.model, run.objective, run.optimizer, run.bad_steps, run.seed, run.mesh, run.rules))
        return _compiled.setdefault(key, make(run))

    monkeypatch.setattr(step, "programs", programs)


def hash_of(batch) -> str:
    return hexadecimal(_hash(batch))


def poison(monkeypatch, run, positions) -> None:
    """What these batches of the run are charged is not a number."""
    stream = pipeline.batches(run)
    hashes = [hash_of(next(stream)) for _ in range(max(positions) + 1)]
    bad = {hashes[position] for position in positions}
    place = pipeline.to_devices

    def placed(batch, mesh, rules):
        if hash_of(batch) in bad:
            weights = batch["decoder_loss_weights"]
            batch = {**batch, "decoder_loss_weights": np.full_like(weights, np.nan)}
        return place(batch, mesh, rules)

    monkeypatch.setattr(pipeline, "to_devices", placed)


def final(tmp_path, run, name="model"):
    with sharding.layout(run.mesh.build(), run.rules):
        abstract = step.programs(run).abstract_state()
        saved = Checkpoints(tmp_path / name, read_only=True)
        return jax.tree.leaves(saved.restore(run.steps, abstract, pipeline.batches(run)))


def arrays(model_dir, at) -> dict:
    return ocp.PyTreeCheckpointer().restore(model_dir / "checkpoints" / str(at) / "state")


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_step_stops_the_run(make_run, train, monkeypatch, tmp_path, lines):
    run = make_run()
    poison(monkeypatch, run, [5])
    with pytest.raises(Diverged, match="The loss is nan at step 6"):
        train(run)
    assert model_dirs.latest_step(tmp_path / "model") == 4
    assert lines(tmp_path / "model", "ledger")[-1]["bad"]
    bad = [line for line in lines(tmp_path / "model", "metrics") if line.get("event") == "bad step"]
    assert bad == [{"step": 6, "kind": "event", "event": "bad step", "reason": "loss is nan", "then": "stop"}]


def test_a_warm_up_that_does_not_end_is_said(make_run, train, watcher):
    train(make_run(steps=1, optimizer=optim.AdamW(schedule=optim.Constant(peak=1e-2, warmup_steps=1000))))
    assert watcher.warnings == ["The warm-up takes 1,000 steps, and the run has 1."]


def test_a_schedule_that_does_not_end_is_said(make_run, train, watcher):
    schedule = optim.Cosine(peak=1e-2, total_steps=500)
    train(make_run(steps=1, optimizer=optim.AdamW(schedule=schedule)))
    assert watcher.warnings == ["The schedule takes 500 steps, and the run has 1."]


def test_a_skipped_step_changes_nothing_but_the_count(make_run, train, monkeypatch, tmp_path, lines):
    run = make_run(bad_steps=BadSteps(then="skip"), steps=6)
    poison(monkeypatch, run, [5])
    train(run)
    train(make_run(steps=5, bad_steps=run.bad_steps), "five")
    six, five = arrays(tmp_path / "model", 6), arrays(tmp_path / "five", 5)
    assert_equal(*(jax.tree.leaves(saved["params"]) for saved in (six, five)))
    for one, other in zip(*(jax.tree.leaves(saved["opt_state"]) for saved in (six, five)), strict=True):
        if one.ndim or not np.issubdtype(one.dtype, np.integer):
            np.testing.assert_array_equal(one, other)
        else:
            assert (one, other) == (6, 5)  # by these the schedule knows the step
    (figures,) = [f for f in lines(tmp_path / "model", "metrics") if f["kind"] == "train" and f["step"] == 6]
    assert figures["skipped_steps"] == 1
    assert np.isfinite(figures["loss"])


def test_too_many_skipped_in_a_row_stop_the_run(make_run, train, monkeypatch, tmp_path, watcher):
    run = make_run(bad_steps=BadSteps(then="skip", most=2))
    poison(monkeypatch, run, [4, 5, 6])
    with pytest.raises(Diverged, match="at step 7, 3 bad steps in a row"):
        train(run)
    with pytest.raises(Diverged, match="at step 7, 3 bad steps in a row"):  # stopped between them or not
        loop.train(run, "", tmp_path / "stopped", watcher, lambda step: step == 6)
        loop.train(run, "", tmp_path / "stopped", watcher, lambda step: False)


def test_a_rollback_leaves_out_what_led_to_the_bad_step(
    make_run, train, monkeypatch, tmp_path, lines, watcher
):
    run = make_run(bad_steps=BadSteps(then="roll back"))
    poison(monkeypatch, run, [5])
    assert train(run) == 12
    fed = [line["batch"] for line in lines(tmp_path / "model", "ledger")]
    assert fed == [0, 1, 2, 3, *range(6, 14)]
    assert watcher.warnings == ["The loss is nan at step 6. Going back to step 4 and leaving out 2 batches."]
    (said,) = [line for line in lines(tmp_path / "model", "metrics") if line.get("event") == "left out"]
    assert (said["step"], said["batches"], said["why"]) == (4, [4, 6], "The loss is nan at step 6.")


def test_a_rollback_without_a_checkpoint_stops(make_run, train, monkeypatch):
    run = make_run(bad_steps=BadSteps(then="roll back"))
    poison(monkeypatch, run, [2])
    with pytest.raises(Diverged, match="at step 3"):
        train(run)


def test_a_run_that_is_bad_again_and_again_is_not_rolled_back_for_ever(make_run, train, monkeypatch):
    run = make_run(bad_steps=BadSteps(then="roll back", most=2))
    poison(monkeypatch, run, range(5, 15))
    with pytest.raises(Diverged, match="rolled back 2 times before"):
        train(run)


def test_steps_are_left_out_of_a_run_that_was_complete(make_run, train, tmp_path, lines, watcher):
    run = make_run()
    train(run)
    assert train(run, skip_steps=range(6, 8)) == 12
    model_dir = tmp_path / "model"
    assert [line["batch"] for line in lines(model_dir, "ledger")] == [*range(5), *range(7, 14)]
    assert sorted(path.name for path in (model_dir / "abandoned").iterdir()) == ["12", "8"]
    before = (model_dir / "ledger.jsonl").read_text()
    train(run, skip_steps=range(6, 8))  # the same command again has nothing more to leave out
    assert (model_dir / "ledger.jsonl").read_text() == before
    assert watcher.warnings == [
        "Going back to step 4, leaving out what steps 6 to 7 were fed; the checkpoints of steps 8, 12 are in "
        "abandoned/.",
        "--skip-steps 6:8 was done before; name more steps to leave out what they are fed now.",
    ]
    with pytest.raises(
        InputError, match=r"2:4 needs a checkpoint before step 2, and the oldest .* is of step 4"
    ):
        train(run, skip_steps=range(2, 4))
    assert sorted(path.name for path in (model_dir / "checkpoints").iterdir()) == ["12", "4", "8"]
    with pytest.raises(InputError, match="names step 13, but the ledger"):
        train(run, skip_steps=range(12, 14))


def test_what_is_left_out_stays_so_when_the_run_is_resumed(make_run, train, tmp_path, lines):
    run = make_run()
    train(run)
    train(run, skip_steps=range(6, 8))
    whole = final(tmp_path, run)
    stopped = iter(range(100))
    loop.train(run, "", tmp_path / "other", _silent(), lambda step: False)
    loop.train(
        run, "", tmp_path / "other", _silent(), lambda step: next(stopped) == 2, skip_steps=range(6, 8)
    )
    loop.train(run, "", tmp_path / "other", _silent(), lambda step: False)
    assert_equal(whole, final(tmp_path, run, "other"))


def _silent():
    from unittest.mock import Mock

    return Mock()


def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_used(
    make_run, train, tmp_path, watcher, lines
):
    run, model_dir = make_run(), tmp_path / "model"
    train(run, "whole")
    assert loop.train(run, "config", model_dir, watcher, lambda step: step == 8) == 8
    newest = model_dir / "checkpoints" / "8"
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    assert train(run) == 12
    (warning,) = watcher.warnings
    assert warning.startswith(f"Checkpoint {newest} is damaged (")
    assert warning.endswith(f"Moved to {model_dir / 'damaged' / '8'}; going on from step 4.")
    assert (model_dir / "damaged" / "8").is_dir()
    assert_equal(final(tmp_path, run), final(tmp_path, run, "whole"))
    assert lines(model_dir, "ledger") == lines(tmp_path / "whole", "ledger")


def test_speed_is_that_of_the_steps_whose_time_was_taken(make_run, train, tmp_path, lines):
    run = make_run(steps=4, log_period=2)
    train(run, "model")
    for line in lines(tmp_path / "model", "metrics"):
        if line["kind"] == "train":
            work = line["model_flops_per_second"] / line["steps_per_second"]
            assert work == pytest.approx(3 * run.step_flops())
            assert line["steps_per_second"] > 0


def test_figures_do_not_depend_on_where_a_run_was_stopped(make_run, train, tmp_path, watcher, lines):
    """Not within a window of the log, and not where an evaluation is due, which is made up for."""
    run, model_dir = make_run(log_period=5, eval_period=3), tmp_path / "stopped"
    train(run, "whole")
    for at in (3, 7, 12):
        loop.train(run, "config", model_dir, watcher, lambda step, at=at: step == at)
        assert model_dirs.latest_step(model_dir) == at
    train(run, "stopped")  # the last evaluation
    found = {each.what: (each.equal, each.different) for each in compare(tmp_path / "whole", model_dir, 12)}
    assert found["training figures"] == (3, 0)
    assert found["held-out figures"] == (4, 0)
    assert not any(different for _, different in found.values())


def test_steps_below_what_was_made_are_refused(make_run, train, tmp_path, watcher):
    loop.train(make_run(), "config", tmp_path / "model", watcher, lambda step: step == 8)
    with pytest.raises(InputError, match="steps is 5, but the run in .* has made 8 and did not end there"):
        train(make_run(steps=5))
    train(make_run())
    assert train(make_run(steps=5)) == 5  # it ended


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_may_come_and_go(make_run, train, tmp_path, watcher, decay):
    """optax's tree of state is another then, the arrays in it are the same."""
    schedule = optim.Constant(peak=1e-2)
    before, after = (optim.AdamW(schedule=schedule, weight_decay=each) for each in (0.1 - decay, decay))
    train(make_run(steps=4, optimizer=before))
    assert train(make_run(steps=6, optimizer=after)) == 6
    assert not watcher.warnings


def test_spikes_may_be_looked_for_from_now_on(make_run, train, tmp_path, watcher):
    rules = [BadSteps(), BadSteps(spike=5.0), BadSteps(spike=5.0, window=7), BadSteps()]
    for number, rule in enumerate(rules, 1):
        assert train(make_run(steps=4 * number, bad_steps=rule)) == 4 * number
    assert not watcher.warnings
    kept = [arrays(tmp_path / "model", step).get("recent") for step in (4, 8, 12, 16)]
    assert [np.shape(each) for each in kept] == [(0,), (100,), (7,), (0,)]
    assert np.isfinite(kept[1]).sum() == np.isfinite(kept[2]).sum() == 4


@pytest.mark.parametrize("part", ["state", "data"])
def test_a_run_does_not_go_back_to_a_damaged_checkpoint(make_run, train, tmp_path, part):
    run, model_dir = make_run(), tmp_path / "model"
    train(run)
    files = [path for path in (model_dir / "checkpoints" / "4" / part).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    before = sorted(path.relative_to(model_dir) for path in model_dir.rglob("*"))
    with pytest.raises(InputError, match="checkpoints/4 is damaged .* --skip-steps would go back to it"):
        train(run, skip_steps=range(6, 8))
    assert sorted(path.relative_to(model_dir) for path in model_dir.rglob("*")) == before
    assert train(run, skip_steps=range(10, 11)) == 12


def test_a_line_that_is_none_is_named_and_one_cut_short_is_dropped(make_run, train, tmp_path):
    run, ledger = make_run(), tmp_path / "model" / "ledger.jsonl"
    train(make_run(steps=8))
    whole = ledger.read_text()
    lines = whole.splitlines(True)
    ledger.write_text("".join([*lines[:3], "}{\n", *lines[4:]]))
    with pytest.raises(InputError, match="ledger.jsonl, line 4 is not what a run writes"):
        train(run)
    ledger.write_text(whole + lines[0][:10])
    assert train(run) == 12
    assert ledger.read_text().startswith(whole) and len(ledger.read_text().splitlines()) == 12


def test_what_is_left_out_has_a_checksum(make_run, train, tmp_path):
    run, path = make_run(), tmp_path / "model" / "skips.json"
    train(run)
    train(run, skip_steps=range(6, 8))
    path.write_text(path.read_text().replace("7", "6", 1))
    with pytest.raises(InputError, match="skips.json is damaged"):
        train(run)


@pytest.mark.parametrize("at", [3, 12])
def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(
    make_run, train, tmp_path, watcher, lines, at
):
    """The last one too: a run is complete when it has that."""
    run, model_dir = make_run(eval_period=3, eval_batches=3), tmp_path / "stopped"
    train(run, "whole")
    asked = []

    def stop(step: int) -> bool:
        asked.append(step)
        return asked.count(at) == 3  # after the step, after a batch, and after another

    loop.train(run, "config", model_dir, watcher, stop)
    assert asked[-3:] == [at, at, at]
    assert model_dirs.latest_step(model_dir) == at
    events = [(line["step"], line.get("event")) for line in lines(model_dir, "metrics")]
    assert events[-1] == (at, "stopped")
    assert not any(line["kind"] == "eval" and line["step"] == at for line in lines(model_dir, "metrics"))
    train(run, "stopped")
    assert not any(each.different for each in compare(tmp_path / "whole", model_dir, 12))
    before = (model_dir / "metrics.jsonl").read_text()
    train(run, "stopped")
    assert (model_dir / "metrics.jsonl").read_text() == before


def test_what_stops_a_run_is_not_hidden_by_a_save_that_fails_later(make_run, train, monkeypatch):
    run = make_run()
    poison(monkeypatch, run, [5])

    def close(self):
        raise NotSaved("full")

    monkeypatch.setattr(Checkpoints, "close", close)
    with pytest.raises(Diverged, match="The loss is nan at step 6"):
        train(run)


def test_a_model_dir_serves_one_run_at_a_time(make_run, train, tmp_path):
    with model_dirs.held(tmp_path / "model"):
        model_dirs.claim(tmp_path / "model", "config")
        with pytest.raises(InputError, match="is in use by another run, process [0-9]+ on "):
            train(make_run())
    train(make_run(steps=1))


def test_a_run_that_is_refused_leaves_no_directory(make_run, train, tmp_path):
    with pytest.raises(InputError):
        train(make_run(eval_split="test"), "deep/er")
    with pytest.raises(InputError, match="cannot be saved"):
        train(make_run(task=_stateful()), "deep/er")
    assert not (tmp_path / "deep").exists()


def _stateful():
    import seqio
    import tensorflow as tf

    def read(split, shuffle_files, seed=None):
        def numbers():
            yield from ({"targets": np.arange(3, 10, dtype=np.int32)} for _ in range(400))

        return tf.data.Dataset.from_generator(
            numbers, output_signature={"targets": tf.TensorSpec([None], tf.int32)}
        )

    return seqio.Task(
        "stateful",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=100), add_eos=True)},
    )


def test_a_save_that_fails_is_said_and_the_one_before_stays(make_run, train, tmp_path, monkeypatch):
    run = make_run()

    def full(path):
        raise OSError(28, "No space left on device")

    train(make_run(steps=4))
    monkeypatch.setattr(pipeline.Batches, "snapshot", lambda self: full)
    draw = pipeline.Batches.__next__

    def slowly(self):
        time.sleep(0.5)
        return draw(self)

    monkeypatch.setattr(pipeline.Batches, "__next__", slowly)
    with pytest.raises(NotSaved, match=r"could not be saved in .*checkpoints \(\[Errno 28\] No space left"):
        train(run)
    monkeypatch.undo()
    steps = [line["step"] for line in records.read(tmp_path / "model" / records.LEDGER)]
    assert 8 <= steps[-1] < 12  # known before the next save
    assert model_dirs.latest_step(tmp_path / "model") == 4
    assert train(run) == 12


def test_a_warm_start_takes_parameters_and_nothing_else(make_run, train, tmp_path, watcher):
    first = make_run()
    train(first)
    start = WarmStart(model_dir=tmp_path / "model", exclude=["*norm*"])
    run = make_run(warm_start=start, steps=1, seed=1, mesh=MeshConfig(fsdp=2))
    with sharding.layout(run.mesh.build(), run.rules):
        programs = step.programs(run)
        fresh = programs.init()
        begun = loop._fresh(run, programs, watcher)
    (plan,) = watcher.plans
    assert plan.skipped == plan.new and all("norm" in name for name in plan.new)
    assert_equal(jax.tree.leaves(begun.opt_state), jax.tree.leaves(fresh.opt_state))
    saved = arrays(tmp_path / "model", 12)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(begun.params):
        other = fresh.params if "norm" in jax.tree_util.keystr(path) else saved
        for key in path:
            other = other[key.key]
        np.testing.assert_array_equal(leaf, other)
    assert train(run, "warm") == 1


def test_the_watchdog_knows_what_the_loop_waits_for(make_run, train):
    said = []
    watchdog = types.SimpleNamespace(doing=said.append)
    train(make_run(steps=2, checkpoint_period=1), watchdog=watchdog)
    named = ("data to be opened", "state to be", "step 1,", "checkpoint of step 1", "data of step 2",
             "evaluation after step 2", "last checkpoint")  # fmt: skip
    found = [next((at for at, what in enumerate(said) if name in what), None) for name in named]
    assert None not in found and found == sorted(found), said
