"""What is read from a compiled program is what the program does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pretrain import hlo
from pretrain.parallel.topologies import Topology


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


@pytest.mark.parametrize("topology", ["cpu:1", "v5e:2x2"])
def test_a_slice_of_a_stack_is_what_a_turn_of_a_loop_reads(topology, request):
    """Ten times the layers are ten times the traffic; whole stacks in each turn would be a hundred times."""
    if topology != "cpu:1":
        request.getfixturevalue("tpu_compiler")
    mesh = jax.sharding.Mesh(np.array(Topology(topology).devices()[:1]), ("x",))

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights)

    def traffic(depth):
        x, weights = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P()))
            for shape in ((512, 512), (depth, 512, 512))
        )
        return hlo.cost(compiled(layers, x, weights).as_text(), 1).bytes

    assert traffic(100) == pytest.approx(10 * traffic(10), rel=0.15)


LOOP = """
%body (p: (s32[], f32[256])) -> (s32[], f32[256]) {
  %p = (s32[], f32[256]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[256] get-tuple-element(%p), index=1
  %r = f32[256] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f32[256]) tuple(%i, %r)
}

%condition (p: (s32[], f32[256])) -> pred[] {
  %p = (s32[], f32[256]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256] parameter(0)
  %zero = s32[] constant(4)
  %first = s32[] copy(%zero)
  %t = (s32[], f32[256]) tuple(%first, %x)
  %loop = (s32[], f32[256]) while(%t), condition=%condition, body=%body
  ROOT %y = f32[256] get-tuple-element(%loop), index=1
}
"""


def test_a_loop_that_only_its_condition_counts():
    """As the TPU compiler writes it: from 4 to 10 are 6 turns; one that compares otherwise is said."""
    (reduced,) = hlo.cost(LOOP, 2).collectives
    assert (reduced.count, reduced.bytes, hlo.cost(LOOP, 2).searches) == (6, 6 * 1024, 0)
    searching = hlo.cost(LOOP.replace("direction=LT", "direction=NE"), 2)
    assert (searching.collectives[0].count, searching.searches) == (1, 1)


def entry(*lines: str) -> str:
    return "\n".join(["ENTRY %main (x: f32[64]) -> f32[64] {", "  %x = f32[64] parameter(0)", *lines, "}"])


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            ["  %s = (f32[64], f32[512]) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}",
             "  ROOT %d = f32[512] all-gather-done(%s)"],
            ("all-gather", 8, 1, 512 * 4),
        ),
        (
            ["  %s = f32[64] all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%add",
             "  ROOT %d = f32[64] all-reduce-done(%s)"],
            ("all-reduce", 2, 1, 64 * 4),
        ),
        (["  ROOT %r = f32[8] reduce-scatter(%x), replica_groups=[1,8]<=[8]"], ("reduce-scatter", 8, 1, 256)),
        (
            ["  %s = ((f32[64]), f32[8], u32[]) async-start(%x), calls=%wrapped",
             "  %u = ((f32[64]), f32[8], u32[]) async-update(%s), calls=%wrapped",
             "  ROOT %d = f32[8] async-done(%u), calls=%wrapped", "}", "",
             "%wrapped (p: f32[64]) -> f32[8] {", "  %p = f32[64] parameter(0)",
             "  ROOT %r = f32[8] reduce-scatter(%p), replica_groups=[1,8]<=[8]"],
            ("reduce-scatter", 8, 1, 256),
        ),
        (
            ["  %c = s32[] constant(0)",
             "  ROOT %y = f32[64] conditional(%c, %x, %x), branch_computations={%a, %b}", "}", "",
             "%a (p: f32[64]) -> f32[64] {", "  ROOT %p = f32[64] parameter(0)", "}", "",
             "%b (p: f32[64]) -> f32[64] {", "  %p = f32[64] parameter(0)",
             "  ROOT %q = f32[64] collective-permute(%p), source_target_pairs={{0,1},{1,0}}"],
            ("collective-permute", 2, 1, 256),
        ),
    ],
    ids=["all-gather-start", "all-reduce-start", "reduce-scatter", "async", "conditional"],
)  # fmt: skip
def test_the_forms_of_collectives(lines, found):
    (each,) = hlo.cost(entry(*lines), 8).collectives
    assert (each.kind, each.members, each.count, each.bytes) == found


@pytest.mark.parametrize(
    ("line", "bytes"),
    [
        ("%c = (f32[64]{0:S(1)}, f32[64], u32[]) copy-start(%x)", 256),
        ("%c = (f32[64], f32[64], u32[]) copy-start(%x)", 512),
        ('%c = f32[6400] custom-call(), custom_call_target="AllocateBuffer"', 0),
        ("%c = f32[8] dynamic-slice(%x, %x), dynamic_slice_sizes={8}", 64),
    ],
)
def test_the_traffic_of_a_tpus_operations(line, bytes):
    assert hlo.cost(entry(f"  ROOT {line}"), 8).bytes == bytes


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
