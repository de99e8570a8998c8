"""Bare products of matrices, the largest of a shape, by XLA: python products.py encoder_decoder|decoder

No train step of the shape can be faster than these are.
"""

import sys

import jax
import jax.numpy as jnp
from job import SHAPES, serve

TIMES = 8


def main(family: str) -> None:
    shape = SHAPES[family]
    rows = max(shape.inputs, shape.targets) * shape.batch
    hidden, weight = jnp.ones((rows, shape.embed)), jnp.ones((shape.embed, shape.vocab))
    product = jax.jit(jnp.matmul)

    def step() -> None:
        for _ in range(TIMES):
            product(hidden, weight).block_until_ready()

    serve(0, step, flops=TIMES * 2.0 * rows * shape.embed * shape.vocab)


if __name__ == "__main__":
    main(*sys.argv[1:])
