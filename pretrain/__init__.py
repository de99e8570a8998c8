"""Pretraining in JAX: SeqIO corpora, an objective to choose, Flax models sharded by `jax.jit`."""

__version__ = "0.1.0"
