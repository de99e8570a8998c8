"""`pretrain plan` prints what `planning` found, and ends with 1 where a run does not fit."""

import json

import pytest

from pretrain import planning

SMALL = {
    "BATCH_SIZE": 16,
    "lengths": {"inputs": 64, "targets": 48},
    "encoder_decoder.EncoderDecoderConfig.embed_dim": 32,
    "encoder_decoder.EncoderDecoderConfig.mlp_dim": 64,
    "encoder_decoder.EncoderDecoderConfig.encoder_layers": 1,
    "encoder_decoder.EncoderDecoderConfig.decoder_layers": 1,
}


@pytest.fixture
def plan(call):
    def run(*arguments, topology="cpu:8"):
        return call("plan", "runs/quickstart.gin", "--topology", topology, *arguments, settings=SMALL)

    return run


def test_the_table_and_the_object_say_the_same(plan):
    table, told = plan("--tokens", "1e9"), plan("--json")
    assert (table.code, told.code) == (0, 0), (table, told)
    figures = json.loads(told.out)
    assert figures["fits"] and figures["mesh"]["data"] == 8
    assert f"{figures['parameters']:,} parameters" in table.out
    assert f"{figures['memory']['total'] / 2**30:.3f} GiB" in table.out
    assert f"{figures['model_flops']:.3e}" in table.out
    (reduced,) = figures["collectives"]
    assert f"{reduced['count']} all-reduce" in table.out and "among 8 devices" in table.out
    assert figures["seconds"] is None and "not known of this kind of device" in table.out


def test_a_search_is_a_list_and_tells_of_each_try(plan, monkeypatch):
    meshes = [planning.MeshConfig(data=2, fsdp=4), planning.MeshConfig(data=3)]
    monkeypatch.setattr(planning, "meshes", lambda run, devices: meshes)
    found = plan("--search", "--json")
    assert found.code == 0, found
    assert sorted(each["batch_size"] for each in json.loads(found.out)) == [16, 32, 64]
    assert found.err.count("data=2, fsdp=4, remat none: ") == 3
    assert "batch 16, data=3, remat none: cannot be: Mesh (data=3) needs 3 devices" in found.err


@pytest.mark.parametrize("change", ["RunConfig.microbatches = 2", None])
def test_a_run_that_does_not_fit(plan, monkeypatch, change):
    def refuse(run, topology):
        raise planning.TooLarge(20 * 2**30, 15.75 * 2**30)

    monkeypatch.setattr(planning, "plan", refuse)
    monkeypatch.setattr(planning, "first_that_fits", lambda run, topology: change and (change, None))
    result = plan("--json")
    assert result.code == 1
    assert "a device would need 20.00 GiB, 4.25 more than the compiler has" in result.err
    assert (f"it would with {change}" if change else "nor would it with any change") in result.err
    assert json.loads(result.out) == {
        "fits": False, "needed": 20 * 2**30, "available": 15.75 * 2**30, "change": change,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5p", "--topology is 'v5p'; give v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4 or cpu:8."),
        ("cpu:64", "--topology is cpu:64, but this process began with 8"),
    ],
)
def test_a_topology_that_is_none(plan, topology, said):
    result = plan(topology=topology)
    assert result.code == 2 and said in result.err
    assert result.err.count("\n") == 1
