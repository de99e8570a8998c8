"""What is read from a compiled program is what the program does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pretrain import hlo


def compiled(function, *shapes):
    return jax.jit(function).lower(*shapes).compile()


def test_what_a_loop_does_counts_as_often_as_it_turns():
    """A scan whose body gathers 4 KiB: once for each of 7 layers."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    weights = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "x", None)))

    def layers(x, weights):
        def body(x, w):
            return jnp.tanh(x @ jax.sharding.reshard(w, P(None, None))), None

        return jax.lax.scan(body, x, weights)[0]

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P("x", None)))
        program = compiled(layers, x, weights)
    (gathered,) = hlo.cost(program.as_text(), 8).collectives
    assert (gathered.kind, gathered.members, gathered.count) == ("all-gather", 8, 7)
    assert gathered.bytes == 7 * 32 * 32 * 4
    assert gathered.link_bytes == gathered.bytes * 7 / 8


def test_a_reduction_over_all_devices():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P("x", "y")))
        program = compiled(lambda x: jnp.sum(x, axis=0, keepdims=True), x)
    (reduced,) = hlo.cost(program.as_text(), 8).collectives
    assert (reduced.kind, reduced.members, reduced.count, reduced.bytes) == ("all-reduce", 4, 1, 64 * 4)
    assert reduced.link_bytes == 2 * 64 * 4 * 3 / 4


def test_traffic_is_what_xla_counts_where_there_is_no_loop():
    def function(x, w):
        h = jnp.tanh(x @ w)
        return jnp.sum(h * h, axis=0), h[:8]

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 512), (512, 128)))
    program = compiled(function, x, w)
    np.testing.assert_allclose(
        hlo.cost(program.as_text(), 1).bytes, program.cost_analysis()["bytes accessed"], rtol=0.1
    )


def test_a_slice_of_a_stack_is_what_a_turn_of_a_loop_reads():
    """Ten times the layers are ten times the traffic; whole stacks in each turn would be a hundred times."""

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights)

    def traffic(depth):
        x, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 64), (depth, 64, 64)))
        return hlo.cost(compiled(layers, x, weights).as_text(), 1).bytes

    assert traffic(100) == pytest.approx(10 * traffic(10), rel=0.1)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x=1", 3),
        ("replica_groups=[2,4]<=[8], x", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=1] {'axis_0','axis_2'}, x", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("channel_id=1, replica_groups={}, x", 8),
    ],
)
def test_groups_as_xla_writes_them(attributes, size):
    assert hlo._group_size(attributes, 8) == size


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.cost("HloModule nothing", 1)
