"""What stays, what comes back, and where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from pretrain import checkpointing, pipeline
from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.pipeline import Batches


def batches(repeats=None, identity="of this", share="0 of 1") -> Batches:
    dataset = (
        tf.data.Dataset.range(40).shuffle(10, seed=1).map(lambda i: {"x": i[None]}).batch(2).repeat(repeats)
    )
    return Batches(dataset, 2, "test", {"the text": identity, "the share of a process": share})


def state(value: float):
    return {"step": jnp.int32(value), "params": {"w": jnp.full((8, 4), value)}, "opt_state": jnp.zeros(3)}


def test_the_newest_stay_and_every_multiple(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path, keep=2, period=4)
    data = batches()
    for step in range(1, 9):
        next(data)
        saved.save(step, state(step), data, "text")
    saved.close()
    assert checkpointing.Checkpoints(tmp_path, read_only=True).steps() == [4, 7, 8]


def test_state_and_data_come_back_together(tmp_path):
    saved, data = checkpointing.Checkpoints(tmp_path), batches()
    for _ in range(5):
        next(data)
    saved.save(5, state(5.0), data, "text")
    expected = [next(data)["x"].tolist() for _ in range(20)]
    saved.close()

    again = batches()
    restored = checkpointing.Checkpoints(tmp_path).restore(5, jax.eval_shape(lambda: state(0.0)), again)
    np.testing.assert_array_equal(restored["params"]["w"], np.full((8, 4), 5.0))
    assert [next(again)["x"].tolist() for _ in range(20)] == expected


def test_a_position_in_other_data_is_refused(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, state(3.0), batches(), "text")
    saved.wait()
    abstract = jax.eval_shape(lambda: state(0.0))
    with pytest.raises(InputError, match="position in other data, since the text changed"):
        saved.restore(1, abstract, batches(identity="of that"))
    assert saved.restore(1, abstract, batches())["step"] == 3
    saved.close()


def test_another_share_of_the_data_is_another_place(tmp_path):
    """As many processes may read other shares, where the mesh is another."""
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, state(3.0), batches(share="1 of 4"), "text")
    saved.wait()
    with pytest.raises(InputError, match="since the share of a process changed"):
        saved.restore(1, jax.eval_shape(lambda: state(0.0)), batches(share="1 of 2"))
    saved.close()


def largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".txt"]
    return max(files, key=lambda path: path.stat().st_size)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["state", "data", "config"])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda path: path.unlink()])
def test_damage_is_found_and_nothing_sound_is_touched(tmp_path, part, damage):
    saved = checkpointing.Checkpoints(tmp_path)
    data = batches()
    for step in (1, 2):
        next(data)
        saved.save(step, big_state(float(step)), data, "text")
    saved.close()
    damage(largest_file(tmp_path / "checkpoints" / "2" / part))  # commit_success.txt says nothing
    said = []
    abstract = jax.eval_shape(lambda: big_state(0.0))
    saved = checkpointing.Checkpoints(tmp_path)
    step, restored = saved.restore_newest(abstract, batches(), said.append)
    assert step == 1 and restored["step"] == 1
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["2"]
    assert saved.steps() == [1]
    (message,) = said
    assert message.startswith(f"Checkpoint {tmp_path}/checkpoints/2 is damaged (")
    assert "function_node" not in message
    saved.close()


def big_state(value: float):
    """One whose numbers are the largest file, and that no compression makes small."""
    numbers = jax.random.normal(jax.random.key(int(value)), (100, 100))
    return {"step": jnp.int32(value), "params": {"w": numbers}, "opt_state": jnp.zeros(3)}


def test_a_position_that_is_not_what_was_written_is_damage(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(2, state(2.0), batches(), "text")
    saved.wait()
    (path,) = (tmp_path / "checkpoints/2/data").glob("*.json")
    path.write_text(path.read_text().replace('"position": 0', '"position": 1'))
    with pytest.raises(checkpointing.Damaged, match="is not what was written"):
        saved.restore(2, jax.eval_shape(lambda: state(0.0)), batches())
    saved.close()


@pytest.mark.parametrize("name", ["fingerprint", "params", "window", "text"])
def test_any_bit_of_the_config_that_flipped_is_damage(tmp_path, name):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(2, state(2.0), batches(), "text", [{"loss": 1.5}])
    saved.wait()
    (path,) = (path for path in (tmp_path / "checkpoints/2/config").rglob("*") if path.name == "metadata")
    path.write_text(path.read_text().replace(name, name[:-1] + "_"))
    with pytest.raises(checkpointing.Damaged):
        saved.restore(2, jax.eval_shape(lambda: state(0.0)), batches())
    saved.close()


def wrapped(error):
    """As Orbax does with what TensorStore says."""
    try:
        raise Exception("See full TensorStore details") from error
    except Exception as outer:
        return outer


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(24, "Too many open files"),
        MemoryError(),
        ValueError("UNAVAILABLE: Error reading"),
        wrapped(ValueError("RESOURCE_EXHAUSTED: Error reading")),
        InputError("no"),
    ],
)
def test_what_may_pass_is_no_damage(tmp_path, monkeypatch, trouble):
    saved = checkpointing.Checkpoints(tmp_path)
    for step in (1, 2):
        saved.save(step, state(2.0), batches(), "text")
    saved.wait()

    def restore(self, path):
        raise trouble

    monkeypatch.setattr(pipeline.Batches, "restore", restore)
    with pytest.raises(type(trouble)) as raised:
        saved.restore_newest(jax.eval_shape(lambda: state(0.0)), batches(), print)
    assert raised.value is trouble
    assert saved.steps() == [1, 2] and not (tmp_path / "damaged").exists()
    saved.close()


def test_damage_is_told_by_its_root_cause(tmp_path, monkeypatch):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, state(2.0), batches(), "text")
    saved.wait()

    def restore(self, path):
        raise wrapped(ValueError("Truncated stream"))

    monkeypatch.setattr(pipeline.Batches, "restore", restore)
    with pytest.raises(checkpointing.Damaged, match=r"is damaged \(Truncated stream\)\.$"):
        saved.restore(1, jax.eval_shape(lambda: state(0.0)), batches())
    saved.close()


def test_where_no_checkpoint_is_sound_none_is_moved(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, big_state(1.0), batches(), "text")
    saved.close()
    flip_a_bit(largest_file(tmp_path / "checkpoints" / "1" / "state"))
    saved = checkpointing.Checkpoints(tmp_path)
    with pytest.raises(InputError, match="No checkpoint in .* is sound .*params/w is not what was saved"):
        saved.restore_newest(jax.eval_shape(lambda: big_state(0.0)), batches(), print)
    assert saved.steps() == [1]
    saved = checkpointing.Checkpoints(tmp_path, read_only=True)
    with pytest.raises(checkpointing.Damaged, match="params/w is not what was saved"):
        saved.restore_params(1, jax.eval_shape(lambda: big_state(0.0))["params"])


def test_another_shape_is_no_damage(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, state(1.0), batches(), "text")
    saved.wait()
    with pytest.raises(InputError, match=r"params/w has shape \(8, 4\) .* by this config \(100, 100\)"):
        saved.restore_newest(jax.eval_shape(lambda: big_state(0.0)), batches(), print)
    assert saved.steps() == [1]


def test_params_alone_come_back_on_another_mesh(tmp_path):
    saved = checkpointing.Checkpoints(tmp_path)
    saved.save(1, state(3.0), batches(), "text")
    saved.close()
    mesh = MeshConfig(data=2, fsdp=4).build()
    with sharding.layout(mesh, sharding.Rules()):
        place = sharding.named(mesh, sharding.Rules(), ("embed", None))
        abstract = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=place)}
        params = checkpointing.Checkpoints(tmp_path, read_only=True).restore_params(1, abstract)
    assert params["w"].sharding.spec == place.spec
    np.testing.assert_array_equal(params["w"], np.full((8, 4), 3.0))


def test_a_position_that_cannot_be_saved_is_found_before_training():
    def numbers():
        yield from ({"x": np.array([i])} for i in range(10))

    dataset = tf.data.Dataset.from_generator(numbers, output_signature={"x": tf.TensorSpec([1], tf.int64)})
    stateful = Batches(dataset.batch(2), 2, "split 'train' of task 'mine'", {})
    next(stateful)
    with pytest.raises(InputError, match="split 'train' of task 'mine' cannot be saved.*from_generator"):
        stateful.snapshot()


def test_nothing_to_read_is_said():
    with pytest.raises(InputError, match="not one batch of 2 in test"):
        next(Batches(tf.data.Dataset.range(0).map(lambda i: {"x": i[None]}).batch(2), 2, "test", {}))
