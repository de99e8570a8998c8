"""A fingerprint is that of the numbers alone, and of every bit of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.fingerprint import fingerprint
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig


def value(x) -> int:
    return int(jax.jit(fingerprint)({"x": x})["x"])


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_it_is_the_same_on_every_mesh(mesh):
    x = jax.random.normal(jax.random.key(0), (16, 8, 4))
    built = mesh.build()
    with sharding.layout(built, sharding.Rules()):
        laid = jax.device_put(x, sharding.named(built, sharding.Rules(), ("embed", "mlp", None)))
        assert value(laid) == value(x)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, jnp.bfloat16, np.uint8, np.bool_])
def test_every_flipped_bit_shows(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)) > 0, dtype)
    before = value(jnp.asarray(x))
    raw = bytearray(x.tobytes())
    for byte in range(len(raw)):
        for bit in range(1 if dtype is np.bool_ else 8):
            raw[byte] ^= 1 << bit
            changed = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
            assert value(jnp.asarray(changed)) != before
            raw[byte] ^= 1 << bit


def test_order_and_sign_of_zero_show():
    assert value(jnp.array([1.0, 2.0])) != value(jnp.array([2.0, 1.0]))
    assert value(jnp.array([[1.0, 2.0], [3.0, 4.0]])) != value(jnp.array([[1.0, 3.0], [2.0, 4.0]]))
    assert value(jnp.array([0.0])) != value(jnp.array([-0.0]))
