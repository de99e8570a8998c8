"""What small layers compute, and the gradients that are written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models import layers
from pretrain.parallel import sharding


def test_gelu_has_the_gradient_that_it_has():
    x = jnp.linspace(-6, 6, 1001)

    def reference(x):
        return jax.nn.gelu(x, approximate=True)

    np.testing.assert_array_equal(layers.gelu(x), reference(x))
    np.testing.assert_allclose(
        jax.vmap(jax.grad(layers.gelu))(x), jax.vmap(jax.grad(reference))(x), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_a_weight_has_the_gradients_of_einsum(dtype):
    rng = np.random.RandomState(0)
    x, ct = jnp.asarray(rng.randn(2, 5, 4), dtype), jnp.asarray(rng.randn(2, 5, 3), jnp.float32)
    weight = jnp.asarray(rng.randn(4, 3), jnp.float32)

    def ours(x, weight):
        return sharding.matmul(x, weight, ("batch", "length", "mlp"), jnp.float32)

    def reference(x, weight):
        return jnp.einsum("BLI,IO->BLO", x, weight.astype(dtype), preferred_element_type=jnp.float32)

    value, pull = jax.vjp(ours, x, weight)
    expected, pull_expected = jax.vjp(reference, x, weight)
    np.testing.assert_array_equal(value, expected)
    for one, other in zip(pull(ct), pull_expected(ct), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            *(np.asarray(g, np.float32) for g in (one, other)), rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6
        )
