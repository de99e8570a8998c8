"""What small layers compute, and the gradients that are written by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models import layers
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig


def test_gelu_has_the_gradient_that_it_has():
    x = jnp.linspace(-6, 6, 1001)

    def reference(x):
        return jax.nn.gelu(x, approximate=True)

    np.testing.assert_array_equal(layers.gelu(x), reference(x))
    np.testing.assert_allclose(
        jax.vmap(jax.grad(layers.gelu))(x), jax.vmap(jax.grad(reference))(x), atol=1e-6
    )


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4)], ids=["into", "out of"])
@pytest.mark.parametrize("mesh", [None, {"data": 1, "fsdp": 2, "tensor": 4}], ids=["alone", "mesh"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_a_weight_has_the_gradients_of_einsum(dtype, mesh, sizes):
    rng = np.random.RandomState(0)
    x, ct = (rng.randn(2, 5, size).astype(np.float32) for size in sizes)
    weight = rng.randn(*sizes).astype(np.float32)
    # How a layer that goes into the MLP lies, and one that comes out of it.
    inner, outer = ("embed", "mlp") if sizes[0] < sizes[1] else ("mlp", "embed")
    axes = ("batch", "length", outer)

    def ours(x, weight):
        return sharding.matmul(x, weight, axes, jnp.float32)

    def reference(x, weight):
        return jnp.einsum("BLI,IO->BLO", x, weight.astype(dtype), preferred_element_type=jnp.float32)

    def both(function, place):
        operands = place(x, ("batch", "length", inner)).astype(dtype), place(weight, (inner, outer))
        value, pull = jax.vjp(function, *operands)
        for gradient, operand in zip(pull(place(ct, axes)), operands, strict=True):
            assert jax.typeof(gradient) == jax.typeof(operand)
            yield np.asarray(gradient, np.float32)
        yield np.asarray(value)

    def laid_out(array, axes):
        return sharding.constrain(jnp.asarray(array), axes)

    expected = list(both(reference, lambda array, axes: jnp.asarray(array)))
    devices = 1 if mesh is None else math.prod(mesh.values())
    with sharding.layout(MeshConfig(**mesh or {}).build(jax.devices()[:devices]), sharding.Rules()):
        found = list(both(ours, laid_out))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2 if dtype == jnp.bfloat16 else 1e-5, atol=1e-5)
