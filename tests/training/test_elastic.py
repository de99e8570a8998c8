"""A checkpoint goes on with any number of processes, on any mesh: real processes over `jax.distributed`.

Written by two processes of four devices each, with data, parameters and tensors cut; read by others.
"""

import json
import shutil

import numpy as np
import pytest

from pretrain import checkpointing
from pretrain.comparison import arrays

STEPS, SAVED = 6, 3
SETTINGS = ("--gin.steps=6", "--gin.stores=['store']", "--gin.checkpoint_period=3", "--gin.log_period=1")
WRITER = {"data": 2, "fsdp": 2, "tensor": 2}

# `pretrain`, but it says what it has restored: every array whole, as it lies on the devices.
TELLING = """\
import json, sys
import jax
from jax.experimental import multihost_utils
from pretrain import checkpointing
from pretrain.cli import main
from pretrain.trees import named_leaves

restore = checkpointing.Checkpoints.restore

def telling(self, *arguments):
    state = restore(self, *arguments)
    arrays = {}
    for name, array in named_leaves(state).items():
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        arrays[name] = multihost_utils.process_allgather(array, tiled=True).tobytes().hex()
    if jax.process_index() == 0:
        json.dump(arrays, open(sys.argv[4] + "/restored.json", "w"))
    return state

checkpointing.Checkpoints.restore = telling
main.main()
"""


def mesh(data=1, fsdp=1, tensor=1) -> list[str]:
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return [f"--gin.mesh.MeshConfig.{axis}={size}" for axis, size in sizes.items()]


def train(
    place, name: str, processes: int, devices: int, *settings: str, program=("-m", "pretrain.cli.main")
):
    words = (*program, "train", "run.gin", "--model-dir", name, *SETTINGS, *settings)
    done = place.ended(*place.launch_several(processes, *words, devices=devices), seconds=240)
    assert [code for code, _, _ in done] == [0] * processes, done
    return done


@pytest.fixture(scope="module")
def written(place):
    """The model dir of the writer, whole; its run never stopped."""
    run_file = place.directory / "run.gin"
    text = run_file.read_text().replace(
        "from pretrain import run\n", "from pretrain import run\nfrom pretrain.parallel import mesh\n"
    )
    run_file.write_text(text + "\nrun.RunConfig.mesh = @mesh.MeshConfig()\nmesh.MeshConfig.data = -1\n")
    cached = place.launch("-m", "pretrain.cli.main", "cache", "run.gin", "--out", "store", "--workers", "1")
    assert place.ended(cached)[0][0] == 0
    train(place, "written", 2, 4, *mesh(**WRITER))
    return place


@pytest.mark.parametrize(
    ("processes", "devices", "sizes"),
    [
        (1, 8, {"fsdp": 4, "tensor": 2}),
        pytest.param(1, 2, {"data": 2}, marks=pytest.mark.slow),
        pytest.param(1, 1, {}, marks=pytest.mark.slow),
        pytest.param(4, 2, {"data": 4, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param(4, 2, {"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param(2, 4, {"data": 8}, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_two_processes_goes_on_elsewhere(written, processes, devices, sizes):
    """The same bits restored, the same batches after it, the same figures but for the order of additions."""
    place, name = written, "-".join(map(str, (processes, devices, *sizes)))
    shutil.copytree(place.directory / "written", place.directory / name)
    shutil.rmtree(place.directory / name / checkpointing.DIRECTORY / str(STEPS))
    train(place, name, processes, devices, *mesh(**sizes), "--allow-config-change", program=("-c", TELLING))

    restored = json.loads((place.directory / name / "restored.json").read_text())
    saved = arrays(place.directory / "written", SAVED)
    assert restored == {array: value.tobytes().hex() for array, value in saved.items()}
    assert place.lines(name, "ledger") == place.lines("written", "ledger")
    assert [line["step"] for line in place.lines(name, "ledger")] == list(range(1, STEPS + 1))
    losses = [
        [line["loss"] for line in place.lines(each, "metrics") if line["kind"] == "train"]
        for each in (name, "written")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for array, value in arrays(place.directory / name, STEPS).items():
        assert np.isfinite(value).all(), array


@pytest.mark.slow
def test_a_stream_says_that_its_places_are_kept_for_as_many_processes(place):
    stream = ("--gin.steps=3", "--gin.checkpoint_period=1")
    program = ("-m", "pretrain.cli.main", "train", "run.gin", "--model-dir", "stream")
    ended = place.ended(*place.launch_several(2, *program, *stream))
    assert [code for code, _, _ in ended] == [0, 0], ended
    shutil.rmtree(place.directory / "stream" / checkpointing.DIRECTORY / "3")
    before = sorted(path.name for path in (place.directory / "stream").rglob("*"))
    ((code, out, err),) = place.ended(place.launch(*program, *stream))
    assert (code, err.count("\n")) == (2, 1), (code, out, err)
    assert "holds the data positions of 2 process(es), but this run has 1" in err
    assert "pretrain cache" in err
    assert sorted(path.name for path in (place.directory / "stream").rglob("*")) == before
