"""Packaging of `pretrain`; tool settings (ruff, mypy, pytest) are in pyproject.toml."""

from setuptools import find_packages, setup

# Beam 2.77 needs protobuf < 7, and sentencepiece 0.2.3 needs protobuf 7.
BEAM = ["apache-beam>=2.77,<2.80", "sentencepiece==0.2.2"]
PLOT = ["matplotlib>=3.9,<4"]

setup(
    name="pretrain",
    version="0.1.0",
    description="Pretraining in JAX: SeqIO corpora, an objective to choose, Flax models sharded by jax.jit.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["pretrain", "pretrain.*", "tasks", "tasks.*"]),
        # The run files are package data, so that `pretrain train runs/quickstart.gin` works from anywhere.
        "gin_configs",
    ],
    package_data={"gin_configs": ["*/*.gin"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "seqio>=0.0.20,<0.1",
        "tensorflow>=2.20,<2.22",
        "tensorflow-datasets>=4.9.9,<4.10",
        "importlib_resources>=6",  # tensorflow-datasets imports it without asking for it
        "tensorflow-text>=2.20,<2.22",
        "gin-config>=0.5,<0.6",
        "numpy>=2,<3",
        "sentencepiece>=0.2,<0.3",
        "array_record>=0.8,<0.9",
        "click>=8.1,<9",
        "rich>=13,<16",
        "tensorboard>=2.20,<2.22",
    ],
    extras_require={
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "beam": BEAM,
        "plot": PLOT,
        "test": [
            *BEAM,
            *PLOT,
            # The TPU compiler, which needs no TPU: `pretrain plan`.
            "jax[tpu]>=0.10,<0.13; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14,<1",
            "mypy>=1.18,<3",
            # What t5, the reference that scripts/setup.sh installs without its outdated pins, imports.
            "babel",
            "nltk",
            "pandas",
            "rouge-score",
            "sacrebleu",
            "scikit-learn",
        ],
    },
    entry_points={"console_scripts": ["pretrain = pretrain.cli.main:main"]},
)
