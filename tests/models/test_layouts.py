"""Where the arrays of a run lie: parameters by the rules, gradients with them (optimizers: test_optim.py)."""

import jax
import pytest
from flax import nnx

from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state
from pretrain.trees import named_leaves

ATTENTION = {
    "query": ("layers", "embed", "heads"),
    "key": ("layers", "embed", "heads"),
    "value": ("layers", "embed", "heads"),
    "out": ("layers", "heads", "embed"),
}
MLP = {
    "gate": ("layers", "embed", "mlp"), "up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed"),
}  # fmt: skip


def stack(name: str, *attentions: str) -> dict[str, tuple]:
    blocks = {f"{each}/{part}": axes for each in attentions for part, axes in ATTENTION.items()}
    blocks |= {f"mlp/{part}": axes for part, axes in MLP.items()}
    return {f"{name}/layers/{part}": axes for part, axes in blocks.items()}


ENDS = {"embedding/table": ("vocab", "embed"), "unembedding/kernel": ("embed", "vocab")}
BIAS = (None, "heads")
HEAD = {
    "embedder/tokens/table": ("vocab", "embed"), "head/dense": ("embed", None), "head/bias": ("vocab",),
}  # fmt: skip
AXES = {
    "decoder": ENDS | stack("stack", "attention"),
    "encoder_decoder": ENDS
    | stack("encoder", "attention")
    | stack("decoder", "attention", "cross_attention")
    | {f"{side}/relative_bias/table": BIAS for side in ("encoder", "decoder")},
    "encoder": HEAD | stack("stack", "attention"),
    "two_stream": {"embedding/table": ("vocab", "embed"), "start": (None,), "bias": ("vocab",)}
    | stack("stack", "attention"),
    "bert": HEAD
    | {"embedder/positions": (None, "embed"), "head/dense_bias": (None,)}
    | {name: axes for name, axes in stack("stack", "attention").items() if "gate" not in name}
    | {f"stack/layers/attention/{part}_bias": ("layers", "heads") for part in ("query", "key", "value")}
    | {"stack/layers/attention/out_bias": ("layers", None), "stack/layers/mlp/down_bias": ("layers", None)}
    | {"stack/layers/mlp/up_bias": ("layers", "mlp")},
}


def expected(axes: tuple) -> tuple:
    along = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
    return tuple(along.get(axis) for axis in axes)


@pytest.mark.parametrize("family", AXES)
def test_parameters_and_gradients_lie_as_the_rules_say(family, tiny_config, token_batch):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    config = tiny_config(family)
    with sharding.layout(mesh, sharding.Rules()):
        params = jax.eval_shape(lambda: state.init_params(config, 0))
        graph = state.graph(config)

        def loss(params, batch):
            return nnx.merge(graph, params)(batch).sum()

        batch = {
            name: jax.ShapeDtypeStruct(
                rows.shape, rows.dtype, sharding=sharding.named(mesh, sharding.Rules(), ("batch", "length"))
            )
            for name, rows in token_batch(family).items()
        }
        gradients = jax.eval_shape(jax.grad(loss), params, batch)
    wanted = dict(AXES[family])
    for name, leaf in named_leaves(params).items():
        axes = wanted.pop(name, None)
        if axes is None:  # a norm's: small, and whole on every device
            assert name.endswith(("scale", "shift")), name
            axes = (None,) * leaf.ndim
        assert tuple(leaf.sharding.spec) == expected(axes), name
    assert not wanted
    for name, leaf in named_leaves(gradients).items():
        assert leaf.sharding.spec == named_leaves(params)[name].sharding.spec, name
