"""The largest product of matrices of a shape, and nothing else, by XLA: python products.py FAMILY

About as fast as a train step can be asked to be; others of its products are slower or, by libraries that are
not XLA's, faster.
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
