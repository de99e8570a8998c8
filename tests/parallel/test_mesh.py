import jax
import pytest

from pretrain.errors import InputError
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig


def test_the_free_axis_takes_the_rest():
    sizes = {"replica": 1, "data": 4, "fsdp": 1, "context": 1, "tensor": 2}
    assert MeshConfig(data=-1, tensor=2).sizes(8) == sizes
    assert dict(MeshConfig(data=2, fsdp=-1).build().shape) == {**sizes, "data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "needs 3 devices but there are 8"),
        ({"data": -1, "tensor": 3}, "needs a multiple of 3 devices but there are 8"),
        ({"data": 16}, "needs 16 devices but there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        ({"data": 0}, "must be a positive number"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        MeshConfig(**sizes).build()


def test_a_mesh_axis_serves_the_first_dimension_that_asks():
    rules = sharding.Rules()
    batch = ("replica", "data", "fsdp")
    assert rules.spec(("batch", "length", "embed")) == sharding.PartitionSpec(batch, "context", None)
    assert rules.spec(("embed", "mlp")) == sharding.PartitionSpec("fsdp", "tensor")
    assert sharding.Rules(mlp="fsdp").spec(("embed", "mlp")) == sharding.PartitionSpec("fsdp", None)


def test_a_rule_for_an_axis_the_mesh_lacks_is_refused():
    rules = sharding.Rules(mlp="model")
    with (
        pytest.raises(InputError, match="Rules.mlp names mesh axis 'model'; the mesh has replica, data"),
        sharding.layout(MeshConfig().build(), rules),
    ):
        pass


def test_a_dimension_that_does_not_divide_is_refused():
    with (
        pytest.raises(InputError, match="mlp dimension of a parameter, 6, does not divide into the 4 shares"),
        sharding.layout(MeshConfig(tensor=4).build(), sharding.Rules()),
    ):
        sharding.normal(jax.random.key(0), (8, 6), ("embed", "mlp"), 1.0)


def test_a_layout_ends_with_its_context():
    with sharding.layout(MeshConfig().build(), sharding.Rules()):
        assert sharding.spec(("embed",)) == sharding.PartitionSpec("fsdp")
    assert sharding.spec(("embed",)) is None
