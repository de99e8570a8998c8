"""Every test runs on 8 simulated CPU devices, so that sharded and plain programs meet in one process."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Most of a small test is XLA compiling; what it computes does not need to be fast.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import pytest

# Many tests train the same small runs: what one compiles serves all workers, and the next time.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")


def pytest_make_parametrize_id(config, val, argname):
    """Bytes in a name of a test hide the rest, and pytest-xdist needs the same names in each worker."""
    return argname if isinstance(val, bytes) else None


VOCAB, BATCH, INPUTS, TARGETS = 64, 8, 24, 16
BERT = {
    "norm": "layer", "norm_first": False, "gated": False, "biases": True, "positions": "learned",
    "max_positions": INPUTS, "activation": "exact_gelu",
}  # fmt: skip


def _tiny_config(family: str, **changes):
    """A model of a few thousand parameters; heads, mlp and vocabulary divide by 4."""
    from pretrain.models.decoder import DecoderConfig
    from pretrain.models.dual_encoder import DualEncoderConfig
    from pretrain.models.encoder import EncoderConfig
    from pretrain.models.encoder_decoder import EncoderDecoderConfig
    from pretrain.models.two_stream import TwoStreamConfig

    sizes = {"vocab_size": VOCAB, "embed_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64}
    if family == "decoder":
        return DecoderConfig(**{**sizes, "num_layers": 2, "num_kv_heads": 2, **changes})
    if family == "encoder":
        return EncoderConfig(**{**sizes, "num_layers": 2, **changes})
    if family == "dual_encoder":
        return DualEncoderConfig(**{**sizes, "num_layers": 2, **changes})
    if family == "two_stream":
        return TwoStreamConfig(**{**sizes, "num_layers": 2, **changes})
    if family == "bert":
        return EncoderConfig(**{**sizes, **BERT, "num_layers": 2, **changes})
    return EncoderDecoderConfig(**{**sizes, "encoder_layers": 2, "decoder_layers": 3, **changes})


def _rows(rng: np.random.RandomState, name: str, length: int, segments: list[int]) -> dict[str, np.ndarray]:
    """Tokens, segment ids and positions [BATCH, length]: segments of these lengths, then padding."""
    ids = np.repeat(np.arange(1, len(segments) + 1), segments)
    position = np.concatenate([np.arange(n) for n in segments])
    padding = (0, length - len(ids))
    return {
        f"{name}_input_tokens": rng.randint(3, VOCAB, (BATCH, length)).astype(np.int32),
        f"{name}_segment_ids": np.tile(np.pad(ids, padding), (BATCH, 1)).astype(np.int32),
        f"{name}_positions": np.tile(np.pad(position, padding), (BATCH, 1)).astype(np.int32),
    }


def _token_batch(family: str, seed: int = 0, packed: bool = False) -> dict[str, np.ndarray]:
    """Random tokens with every feature of the family; packed rows hold two segments and some padding."""
    rng = np.random.RandomState(seed)
    if family in ("encoder", "bert", "two_stream"):
        batch = _rows(rng, "encoder", INPUTS, [10, 11] if packed else [INPUTS])
        batch["encoder_target_tokens"] = rng.randint(3, VOCAB, (BATCH, INPUTS)).astype(np.int32)
        chosen = (batch["encoder_segment_ids"] > 0) & (rng.rand(BATCH, INPUTS) < 0.4)
        if family == "two_stream":
            lots = rng.rand(BATCH, INPUTS).argsort(1)
            batch["encoder_order"] = np.where(chosen, lots, -1).astype(np.int32)
        return batch | {"encoder_loss_weights": chosen.astype(np.float32)}
    batch = _rows(rng, "decoder", TARGETS, [7, 6] if packed else [TARGETS])
    batch["decoder_target_tokens"] = rng.randint(3, VOCAB, (BATCH, TARGETS)).astype(np.int32)
    batch["decoder_loss_weights"] = (batch["decoder_segment_ids"] > 0).astype(np.float32)
    if family == "encoder_decoder":
        batch |= _rows(rng, "encoder", INPUTS, [10, 11] if packed else [INPUTS])
    return batch


@pytest.fixture(scope="session")
def tpu_compiler():
    """Skips where the package of the TPU compiler is not installed."""
    pytest.importorskip("libtpu")


@pytest.fixture
def tiny_config():
    return _tiny_config


@pytest.fixture
def token_batch():
    return _token_batch
