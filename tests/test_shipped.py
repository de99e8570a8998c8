"""Every gin file that comes with the package makes a run whose train step can be lowered."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from pretrain import config, pipeline, planning
from pretrain.parallel import sharding
from pretrain.parallel.topologies import Topology
from pretrain.training import state, step

FAMILIES = {
    "t5": "runs/c4_t5_1_1_base.gin", "decoder": "runs/c4_causal_lm_1b.gin",
    "bert": "runs/bert.gin", "encoder": "runs/bert_tiny.gin", "dual": "runs/contriever_tiny.gin",
    "xlnet": "runs/xlnet.gin", "two": "runs/xlnet_tiny.gin",
}  # fmt: skip
NO_PAPER = "masked_and_contrastive_tiny"
PARAMETERS = {  # of the public checkpoints of T5 1.1
    "t5_1_1_small": 76_961_152, "t5_1_1_base": 247_577_856, "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184, "t5_1_1_xxl": 11_135_332_352,
}  # fmt: skip
NOMINAL = {
    "bert_base": 110e6,
    "bert_large": 335e6,
    "decoder_125m": 125e6,
    "decoder_350m": 350e6,
    "decoder_1b": 1e9,
    "decoder_8b": 8e9,
    "xlnet_base": 110e6,
}


def shipped(directory: str) -> list[str]:
    return sorted(path.stem for path in (config.shipped() / directory).glob("*.gin"))


def load(run_file: str, *over: str):
    bindings = [f"include '{directory}.gin'" for directory in over]
    text = _with_included(run_file)
    corpora = [each for each in ("c4", "wikipedia") if f"{each}.task.vocabulary" in text]
    bindings += [f"{each}.task.vocabulary = None" for each in corpora]  # bytes: fewer ids than the model has
    if Path(run_file).name.startswith("text_"):
        bindings.append("FILES = 'corpus.txt'")
    return config.load(run_file, bindings)


def _with_included(name: str) -> str:
    text = config.find(name).read_text()
    return text + "".join(map(_with_included, re.findall(r"^include '(.*)'$", text, re.M)))


def lowered(run, devices=None) -> tuple[jax.stages.Lowered, int]:
    """The train step of `run`, and the number of its parameters."""
    mesh = run.mesh.build(devices)
    run.check_batch(mesh)
    with sharding.layout(mesh, run.rules):
        programs = step.programs(run, np.zeros(run.model.vocab_size, np.int32))
        abstract = programs.abstract_state()
        return (
            programs.train_step.lower(abstract, pipeline.abstract_batch(run, mesh)),
            state.count(abstract.params),
        )


@functools.cache
def programs() -> dict:
    """The run file of each program, by the run without its corpus, of which no program knows."""
    every = [(name, dataclasses.replace(load(f"runs/{name}.gin"), task="any")) for name in shipped("runs")]
    return {name: next(first for first, other in every if other == run) for name, run in every}


@pytest.mark.parametrize("name", shipped("runs"))
def test_every_run_lowers(name):
    """Run files of one program are lowered once."""
    if programs()[name] == name:
        assert "dot_general" in lowered(load(f"runs/{name}.gin"))[0].as_text()


def test_every_paper_has_its_run_and_a_small_twin():
    """And the page has the settings that the files have."""
    page = (Path(__file__).parents[1] / "docs" / "configs.md").read_text()
    (table,) = re.findall(r"<!-- recipes -->\n\n.*\n.*\n((?:\|.*\n)+)", page)
    said = [line.strip("| ").split(" | ") for line in table.splitlines()]
    names = [cells[0].strip("`") for cells in said]
    assert names == [name for name in shipped("runs") if f"{name}_tiny" in shipped("runs")]
    twins = {f"{name}_tiny" for name in names}
    assert {name for name in shipped("runs") if name.endswith("_tiny")} - twins == {NO_PAPER}
    for name, cells in zip(names, said, strict=True):
        run = load(f"runs/{name}.gin")
        model = re.findall(r"include 'models/(\w+)\.gin'", _with_included(f"runs/{name}.gin"))[0]
        numbers = [f"`{dict(run.lengths)}`", f"{run.batch_size:,}", f"{run.steps:,}"]
        optimizer = f"{type(run.optimizer).__name__}, {type(run.optimizer.schedule).__name__}"
        assert cells[1:] == [f"`{model}`", run.corpus().name, *numbers, optimizer], name
        small = load(f"runs/{name}_tiny.gin")
        assert type(small.objective) is type(run.objective) and small.corpus().name == "python_stdlib"


@pytest.mark.parametrize("name", shipped("models"))
def test_every_model_lowers_and_has_the_size_that_its_name_says(name):
    run = load(FAMILIES[name.partition("_")[0]], f"models/{name}", "meshes/gpu_8")
    program, parameters = lowered(run)
    assert "dot_general" in program.as_text()
    assert parameters == PARAMETERS.get(name, parameters)
    assert parameters == pytest.approx(NOMINAL.get(name, parameters), rel=0.15)


@pytest.mark.parametrize("name", [name for name in shipped("meshes") if name.startswith("v")])
def test_every_mesh_of_a_slice_is_one_of_its_chips(name, tpu_compiler):
    devices = Topology(name.replace("_", ":")).devices()
    run = load("runs/c4_t5_1_1_base.gin", f"meshes/{name}")
    assert math.prod(run.mesh.sizes(len(devices)).values()) == len(devices)
    assert "dot_general" in lowered(run, devices)[0].as_text()


def test_the_mesh_of_two_slices(tpu_compiler):
    run = load("runs/c4_t5_1_1_base.gin", "meshes/two_slices")
    assert "dot_general" in lowered(run, Topology("v5e:2x4", slices=2).devices())[0].as_text()


@pytest.mark.parametrize("name", [name for name in shipped("meshes") if name.startswith("gpu")])
def test_every_mesh_of_gpus_takes_eight(name):
    assert "dot_general" in lowered(load("runs/c4_causal_lm_1b.gin", f"meshes/{name}"))[0].as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_file", "model", "topology", "parameters", "bytes_each"),
    [  # 4 bytes of a parameter, and 8 of AdamW; Adafactor's factors are next to nothing
        ("runs/c4_t5_1_1_base.gin", "t5_1_1_xxl", "v5p:4x4x4", PARAMETERS["t5_1_1_xxl"], 4),
        ("runs/c4_causal_lm_1b.gin", "decoder_8b", "v5e:16x16", 8_030_261_248, 12),
    ],
)
def test_the_largest_models_fit_their_slices(run_file, model, topology, parameters, bytes_each, tpu_compiler):
    """By the TPU's own compiler; docs/performance.md has the figures."""
    run = load(run_file, f"models/{model}", f"meshes/{topology.replace(':', '_')}")
    made = planning.plan(run, Topology(topology))
    assert made.parameters == parameters
    assert made.memory.total < made.chip.memory
    held = (made.memory.parameters + made.memory.optimizer) * made.devices
    assert held == pytest.approx(bytes_each * parameters, rel=0.05)  # all but the smallest are cut
    # Parameters are gathered in bfloat16, at least once; the program for v5p has all-reduces alone, and those
    # of the gradients are not enough for both.
    kinds = {"all-gather"} if topology.startswith("v5e") else {"all-gather", "all-reduce"}
    moved = sum(each.bytes for each in made.cost.collectives if each.kind in kinds)
    assert moved > (2 if topology.startswith("v5e") else 2 + 4) * parameters
    assert made.cost.searches == 0
