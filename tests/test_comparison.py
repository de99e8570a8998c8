"""Two model dirs are one run, or the first thing that differs is named."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pretrain.comparison import compare

STATE = {
    "step": np.int32(4),
    "key": np.array([1, 2], np.uint32),
    "params": {
        "table": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.ones(2, ml_dtypes.bfloat16),
    },
    "opt_state": [{"mu": np.zeros((3, 4), np.float32)}, {"count": np.int32(4)}],
}
EQUAL = {
    "batches": 4,
    "training figures": 2,
    "held-out figures": 1,
    "parameters": 2,
    "optimizer state": 2,
    "step and key": 2,
}


def save(model_dir: Path, state: dict) -> None:
    with ocp.StandardCheckpointer() as writer:
        writer.save(model_dir / "checkpoints" / "4" / "state", state, force=True)


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """What a run of four steps leaves."""
    made = tmp_path_factory.mktemp("runs") / "straight"
    made.mkdir()
    write(
        made / "ledger.jsonl", [{"step": s, "batch": s - 1, "batch_hash": f"hash {s}"} for s in range(1, 5)]
    )
    write(
        made / "metrics.jsonl",
        [
            {"step": 0, "kind": "event", "event": "started", "processes": 1},
            {"step": 2, "kind": "train", "loss": 6.1, "tokens_per_second": 100.0},
            {"step": 4, "kind": "train", "loss": float("nan"), "tokens_per_second": 101.0},
            {"step": 4, "kind": "eval", "loss": 6.0},
        ],
    )
    save(made, STATE)
    return made


@pytest.fixture
def other(model_dir, tmp_path) -> Path:
    """The same, after a restart, on a slower day."""
    copy = tmp_path / "killed"
    shutil.copytree(model_dir, copy)
    kept = lines(copy / "metrics.jsonl")
    for line in kept[1:3]:
        line["tokens_per_second"] = 1.0
    write(copy / "metrics.jsonl", [*kept, {"step": 2, "kind": "event", "event": "resumed"}])
    return copy


def differences(model_dir: Path, other: Path) -> dict[str, str]:
    """The first difference of each kind; at most one of a kind is different."""
    found = [each for each in compare(model_dir, other, 4) if each.different]
    assert all(each.different == 1 for each in found), found
    return {each.what: each.first for each in found}


def test_one_run_is_equal_but_for_clock_and_events(model_dir, other):
    found = compare(model_dir, other, 4)
    assert {each.what: each.equal for each in found} == EQUAL
    assert not any(each.different or each.first for each in found)


def test_a_batch_that_came_twice(model_dir, other):
    ledger = lines(other / "ledger.jsonl")
    ledger[2]["batch_hash"] = ledger[1]["batch_hash"]
    write(other / "ledger.jsonl", ledger)
    assert differences(model_dir, other) == {"batches": 'step 3: batch_hash is "hash 3", then "hash 2"'}


def test_a_line_that_is_missing(model_dir, other):
    ledger, metrics = lines(other / "ledger.jsonl"), lines(other / "metrics.jsonl")
    write(other / "ledger.jsonl", ledger[:3])
    write(other / "metrics.jsonl", [line for line in metrics if line["kind"] != "eval"])
    assert differences(model_dir, other) == {
        "batches": "step 4 is in the first run only",
        "held-out figures": "step 4 is in the first run only",
    }


def test_a_line_that_is_there_twice(model_dir, other):
    ledger = lines(other / "ledger.jsonl")
    write(other / "ledger.jsonl", [*ledger[:2], *ledger[1:]])
    assert differences(model_dir, other) == {"batches": "step 2 again is in the second run only"}


def test_a_loss_that_differs_in_its_last_bit(model_dir, other):
    metrics = lines(other / "metrics.jsonl")
    metrics[1]["loss"] = float(np.nextafter(6.1, 7))
    write(other / "metrics.jsonl", metrics)
    assert differences(model_dir, other) == {
        "training figures": "step 2: loss is 6.1, then 6.1000000000000005"
    }


@pytest.mark.parametrize("name", ["table", "half"])
def test_one_bit_of_a_parameter(model_dir, other, name):
    value = STATE["params"][name].copy()
    value.view(np.uint8).reshape(-1)[-value.itemsize] ^= 1
    save(other, {**STATE, "params": {**STATE["params"], name: value}})
    at = "[2, 3]" if name == "table" else "[1]"
    said = differences(model_dir, other)["parameters"]
    assert said.startswith(f"params/{name}: 1 of {value.size} elements, the first at {at}: ")


def test_minus_zero_is_not_zero(model_dir, other):
    save(other, {**STATE, "opt_state": [{"mu": -STATE["opt_state"][0]["mu"]}, STATE["opt_state"][1]]})
    said = differences(model_dir, other)["optimizer state"]
    assert said == "opt_state/0/mu: 12 of 12 elements, the first at [0, 0]: 0.0, then -0.0"


def test_the_step_and_another_type(model_dir, other):
    save(other, {**STATE, "step": np.int32(5), "params": {**STATE["params"], "half": np.ones(2, np.float16)}})
    assert differences(model_dir, other) == {
        "step and key": "step: 1 of 1 elements, the first at []: 4, then 5",
        "parameters": "params/half: bfloat16[2], then float16[2]",
    }


def test_no_checkpoint(model_dir, other):
    shutil.rmtree(other / "checkpoints")
    found = {each.what: each for each in compare(model_dir, other, 4)}
    assert found["parameters"].different == 2
    assert found["parameters"].first == "params/half is in the first run only"


def test_two_empty_runs_are_not_equal(tmp_path):
    assert all(each.different and not each.equal for each in compare(tmp_path, tmp_path, 4))
