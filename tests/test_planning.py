"""A plan says what the program does, for devices that are here and for some that are not."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from pretrain import optim, planning
from pretrain.errors import InputError
from pretrain.models import backends
from pretrain.models.masks import Mask
from pretrain.objectives import CausalLM, SpanCorruption
from pretrain.parallel.mesh import MeshConfig
from pretrain.parallel.topologies import Topology
from pretrain.run import RunConfig
from pretrain.training import state
from tasks import python_stdlib

LENGTHS = {"decoder": {"targets": 16}, "encoder_decoder": {"inputs": 24, "targets": 16}}
OBJECTIVES = {"decoder": CausalLM(), "encoder_decoder": SpanCorruption()}


@pytest.fixture
def tiny_run(tiny_config):
    """tiny_run(family, model={...}, **changes): a run over a corpus that nobody prepares."""

    def make(family: str = "decoder", model=None, **changes) -> RunConfig:
        settings = {
            "task": python_stdlib.task(),
            "objective": OBJECTIVES[family],
            "model": tiny_config(family, vocab_size=384, **(model or {})),
            "optimizer": optim.AdamW(schedule=optim.Constant(peak=1e-2)),
            "lengths": LENGTHS[family],
            "steps": 10,
            "batch_size": 16,
        }
        return RunConfig(**{**settings, **changes})

    return make


CPUS = Topology("cpu:8")
V5E = Topology("v5e:2x2")


@pytest.mark.parametrize("family", OBJECTIVES)
def test_model_flops_are_those_that_are_computed(family, tiny_run):
    """The formula against the program's own products; rematerialisation adds most of a forward pass of the
    layers, though not the product that ends each."""
    made = planning.plan(tiny_run(family, batch_size=8), CPUS)
    assert made.flops == made.model_flops
    again = planning.plan(tiny_run(family, {"remat": "full"}, batch_size=8), CPUS)
    logits = 2 * 8 * 16 * 32 * 384
    assert 0.7 < (again.flops - made.flops) / (made.model_flops / 3 - logits) < 1
    assert again.model_flops == made.model_flops


def test_a_kernel_counts_as_often_as_it_turns():
    """Two turns for each of two rows, of two heads each."""
    rows, segments = jax.ShapeDtypeStruct((2, 16, 4, 64), np.float32), np.ones((2, 16), np.int32)

    def flops(backend, **options) -> float:
        def mixed(query, keys, value):
            return backend(query, keys, value, Mask.of(segments, causal=True), None, **options)

        return planning.matrix_flops(jax.make_jaxpr(mixed)(rows, rows, rows).jaxpr)

    assert flops(backends.fused, interpret=True) == flops(backends.plain) == 2 * 2 * 2 * 4 * 16 * 16 * 64


@pytest.mark.parametrize("family", OBJECTIVES)
def test_model_flops_are_what_xla_counts(family, tiny_config):
    """Of one layer, so that no loop hides any; wide, since XLA also counts norms, softmax and masks."""
    sizes = {"embed_dim": 256, "head_dim": 64, "mlp_dim": 1024, "vocab_size": 2048}
    layers = (
        {"num_layers": 1, "num_kv_heads": 4}
        if family == "decoder"
        else {"encoder_layers": 1, "decoder_layers": 1}
    )
    model = tiny_config(family, **sizes, **layers)
    lengths = dict.fromkeys(LENGTHS[family], 128)
    graph, params = state.graph(model), jax.eval_shape(lambda: state.init_params(model, 0))
    names = ["decoder_input_tokens", "decoder_segment_ids", "decoder_positions"]
    names += [name.replace("decoder", "encoder") for name in names] if family == "encoder_decoder" else []
    batch = {name: jax.ShapeDtypeStruct((2, 128), np.int32) for name in names}
    program = jax.jit(lambda params, batch: nnx.merge(graph, params)(batch)).lower(params, batch).compile()
    assert program.cost_analysis()["flops"] == pytest.approx(2 * model.flops(lengths), rel=0.05)


def test_memory_is_that_of_the_arrays_on_one_device(tiny_run):
    model = {"num_kv_heads": 4}
    whole = planning.plan(tiny_run(model=model), CPUS).memory
    cut = planning.plan(tiny_run(model=model, mesh=MeshConfig(fsdp=8)), CPUS).memory
    assert whole.parameters == 4 * planning.plan(tiny_run(model=model), CPUS).parameters
    norms = 4 * 32 * (2 * 2 + 1)  # are not cut
    assert cut.parameters == (whole.parameters - norms) / 8 + norms
    assert cut.optimizer == pytest.approx(2 * cut.parameters, abs=16)  # AdamW: two of each, and counts
    assert whole.batch == cut.batch == 16 / 8 * 5 * 16 * 4


def test_the_collectives_of_a_step_are_few_and_explained(tiny_run):
    """Golden counts for 2 layers, as XLA joins them on CPUs: who adds one must say why."""

    def counts(mesh):
        found = planning.plan(tiny_run(model={"num_kv_heads": 4}, mesh=mesh), CPUS).cost.collectives
        return {(each.kind, each.members): each.count for each in found}

    # Gradients of each layer (2) and of the rest, sums.
    assert counts(MeshConfig()) == {("all-reduce", 8): 4}
    # Gathered are the 7 weights of each layer, forward and backward, the embedding and the unembedding.
    assert counts(MeshConfig(data=1, fsdp=8)) == {("all-gather", 8): 2 * 2 * 7 + 2, ("all-reduce", 8): 7}
    # Among 4: after attention and MLP of each layer, forward and backward (8), the embedding, the gradient of
    # the unembedding's input, largest logit and log z of the loss and its accuracy. No array is gathered.
    assert counts(MeshConfig(data=2, tensor=4)) == {
        ("all-reduce", 4): 12, ("all-reduce", 2): 4, ("all-reduce", 8): 3,
    }  # fmt: skip
    # Gathered are keys and values of each layer, again for the backward pass, and the segments.
    assert counts(MeshConfig(data=2, context=4)) == {
        ("all-gather", 4): 5, ("all-reduce", 4): 6, ("all-reduce", 2): 4,
    }  # fmt: skip


def test_a_change_that_needs_less_memory_is_named_in_order(tiny_run):
    run = tiny_run(batch_size=32)
    names = [name for name, _ in planning.smaller(run, 8)]
    assert names[0] == "DecoderConfig.remat = 'full'"
    assert names[1] == "DecoderConfig.remat = 'full', MeshConfig.data = 1, MeshConfig.fsdp = 8"
    assert names[-1].endswith("RunConfig.microbatches = 4") and len(names) == 4
    last = list(planning.smaller(run, 8))[-1][1]
    assert (last.model.remat, last.mesh.fsdp, last.microbatches) == ("full", 8, 4)


def test_the_search_keeps_the_least_rematerialisation_that_fits(tiny_run, monkeypatch):
    def plan(run, topology):
        if run.model.remat != "full" or run.batch_size > 32 or run.mesh.tensor > 2:
            raise planning.TooLarge(2.0, 1.0)
        return made[run.mesh.fsdp] if run.batch_size == 16 else dataclasses.replace(made[1], run=run)

    run = tiny_run()
    one = planning.plan(run, CPUS)
    made = dict.fromkeys((1, 2, 4, 8), one)
    monkeypatch.setattr(planning, "plan", plan)
    tried = []
    found = planning.search(run, CPUS, lambda other, result: tried.append((other, result)))
    assert len(found) == 2 * len([mesh for mesh in planning.meshes(run, 8) if mesh.tensor <= 2])
    asked = [(other.mesh, other.batch_size, other.model.remat) for other, _ in tried]
    assert len(asked) == len(set(asked))
    assert (run.mesh.sizes(8)["data"], 16) == (asked[0][0].data, asked[0][1])


@pytest.mark.parametrize(
    ("name", "slices", "said"),
    [
        ("v5p", 1, "--topology is 'v5p'; give v5p:4x4x4"),
        ("v5p:4x4", 1, "--topology is 'v5p:4x4'; give"),
        ("h100:8", 1, "--topology is 'h100:8'; give"),
        ("cpu:0", 1, "--topology is 'cpu:0'; give"),
        ("cpu:8", 2, "--slices is for TPUs"),
    ],
)
def test_a_topology_that_is_none_is_refused(name, slices, said):
    with pytest.raises(InputError, match=said):
        Topology(name, slices)


def test_more_simulated_cpus_than_there_are_is_refused():
    with pytest.raises(InputError, match="is cpu:9, but this process began with 8"):
        Topology("cpu:9").devices()


def test_without_the_compiler_its_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the TPU compiler: pip install 'pretrain\[tpu\]'"):
        V5E.devices()


def test_a_shape_that_the_compiler_does_not_know_is_refused(tpu_compiler):
    with pytest.raises(InputError, match="knows no --topology v5e:3x5"):
        Topology("v5e:3x5").devices()


def test_a_tpu_slice(tiny_run, tpu_compiler):
    made = planning.plan(tiny_run(mesh=MeshConfig(data=2, fsdp=2), model={"dtype": "bfloat16"}), V5E)
    assert (made.devices, made.mesh["fsdp"]) == (4, 2)
    assert made.flops == made.model_flops
    assert 0 < made.memory.total < made.chip.memory
    assert made.cost.cycles > 0 and made.cost.bytes > 0
    assert {each.kind for each in made.cost.collectives} >= {"all-gather", "all-reduce"}
    assert made.seconds >= max(made.bounds().values()) > 0
    kernels = dataclasses.replace(
        made.cost, kernels=[(2, made.chip.flops, 0.0), (1, 0.0, made.chip.memory_bandwidth)]
    )
    assert dataclasses.replace(made, cost=kernels).compiler_seconds == made.compiler_seconds + 3
    assert 0 < made.utilisation < 1


def test_nobody_is_warned_of_what_jax_cannot_read_of_its_cache(tiny_run, tpu_compiler, recwarn):
    """A program for devices that are not here: JAX keeps it, and fails to read it."""
    for _ in range(2):
        planning.plan(tiny_run(model={"num_layers": 1}), V5E)
    assert not [str(each.message) for each in recwarn if "compilation cache" in str(each.message)]


def test_two_slices_exchange_over_their_own_network(tiny_run, tpu_compiler):
    made = planning.plan(tiny_run(mesh=MeshConfig(replica=2, data=1, fsdp=4)), Topology("v5e:2x2", slices=2))
    between = [each for each in made.cost.collectives if each.between_slices]
    assert {each.kind for each in between} == {"all-reduce"}
    gradients = made.memory.parameters
    assert gradients <= sum(each.bytes for each in between) < 2 * gradients
    with pytest.raises(InputError, match=r"2 slices, but the mesh is data=8: set MeshConfig.replica to 2"):
        planning.plan(tiny_run(), Topology("v5e:2x2", slices=2))


def test_what_does_not_fit_says_by_how_much_and_what_would(tiny_run, tpu_compiler):
    """One device's activations of 20 layers: 16 GiB are not enough, unless they are computed again."""
    run = tiny_run(
        model={"num_layers": 20, "embed_dim": 1024, "mlp_dim": 4096}, batch_size=64, lengths={"targets": 1024}
    )
    with pytest.raises(planning.TooLarge) as refused:
        planning.plan(run, V5E)
    assert refused.value.needed > refused.value.available > 15 * 2**30
    change, made = planning.first_that_fits(run, V5E)
    assert change.startswith("DecoderConfig.remat = 'full'")
    assert made.memory.total < made.chip.memory


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded ...",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(20.00G) exceeds available HBM (15.75G).",
    ],
)
def test_the_compilers_refusals_are_understood(said):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(planning.TooLarge) as refused:
        planning._compiled(Lowered())
    assert (refused.value.needed, refused.value.available) == (20 * 2**30, 15.75 * 2**30)
