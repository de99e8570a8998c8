"""Generation with the cache says what the whole forward pass would say, token by token, for every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.inference import decoding
from pretrain.inference.sampling import Sampling
from pretrain.parallel import sharding
from pretrain.parallel.mesh import MeshConfig
from pretrain.training import state

VOCAB, EOS, NEW = 64, 1, 6
PROMPTS = [[5, 9, 33], [40, 41, 42, 43, 44, 45, 46], [7], [12, 13, 14, 15]]


def built(config, seed=3):
    return nnx.merge(state.graph(config), state.init_params(config, seed))


def padded(prompts, *, left: bool):
    width = max(map(len, prompts)) + 3
    tokens, real = np.zeros((2, len(prompts), width), np.int32)
    for i, prompt in enumerate(prompts):
        where = slice(width - len(prompt), None) if left else slice(0, len(prompt))
        tokens[i, where], real[i, where] = prompt, 1
    return jnp.asarray(tokens), jnp.asarray(real)


def until_eos(tokens) -> list[int]:
    tokens = list(map(int, tokens))
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def greedy(logits_of, steps=NEW) -> list[int]:
    """The reference: the full forward pass over everything so far, again for every token."""
    said: list[int] = []
    while len(said) < steps and EOS not in said:
        logits = np.array(logits_of(said))
        logits[0] = -np.inf  # BOS is never said
        said.append(int(logits[:VOCAB].argmax()))
    return said


@pytest.mark.parametrize("bidirectional", [False, True])
def test_decoder_continues_each_prompt_as_the_full_pass_would(bidirectional, tiny_config):
    model = built(tiny_config("decoder"))
    tokens, real = padded([[0, *prompt] for prompt in PROMPTS], left=True)
    out = decoding.continue_prompt(
        model, tokens, real, jax.random.key(0), bidirectional_prompt=bidirectional, max_tokens=NEW,
        vocab_size=VOCAB, eos_id=EOS, sampling=Sampling(),
    )  # fmt: skip
    for prompt, row in zip(PROMPTS, out, strict=True):

        def logits_of(said, prompt=prompt):
            row = np.array([[0, *prompt, *said]])
            batch = {
                "decoder_input_tokens": row,
                "decoder_segment_ids": np.ones_like(row),
                "decoder_positions": np.arange(row.shape[1])[None],
            }
            if bidirectional:
                batch["decoder_prefix_mask"] = (np.arange(row.shape[1]) <= len(prompt)).astype(int)[None]
            return model(batch)[0, -1]

        assert until_eos(row) == greedy(logits_of)


def test_encoder_decoder_answers_each_input_as_the_full_pass_would(tiny_config):
    model = built(tiny_config("encoder_decoder"))
    tokens, real = padded(PROMPTS, left=False)
    out = decoding.infill(
        model, tokens, real, jax.random.key(0), max_tokens=NEW, vocab_size=VOCAB, eos_id=EOS,
        sampling=Sampling(),
    )  # fmt: skip
    for prompt, row in zip(PROMPTS, out, strict=True):

        def logits_of(said, prompt=prompt):
            inputs, decoder = np.array([prompt]), np.array([[0, *said]])
            return model(
                {
                    "encoder_input_tokens": inputs,
                    "encoder_segment_ids": np.ones_like(inputs),
                    "encoder_positions": np.arange(inputs.shape[1])[None],
                    "decoder_input_tokens": decoder,
                    "decoder_segment_ids": np.ones_like(decoder),
                    "decoder_positions": np.arange(decoder.shape[1])[None],
                }
            )[0, -1]

        assert until_eos(row) == greedy(logits_of)


def test_what_follows_eos_is_padding_and_ids_beyond_the_vocabulary_are_never_said(tiny_config):
    model = built(tiny_config("decoder"))
    tokens, real = padded([[0, *prompt] for prompt in PROMPTS], left=True)
    sampling = Sampling(temperature=5.0)
    out = np.asarray(
        decoding.continue_prompt(
            model, tokens, real, jax.random.key(1), bidirectional_prompt=False, max_tokens=40, vocab_size=5,
            eos_id=EOS, sampling=sampling,
        )
    )  # fmt: skip
    assert out.max() < 5 and (out == EOS).any(axis=1).all()
    for row in out:
        end = row.tolist().index(EOS)
        assert (row[:end] > 0).all() and (row[end + 1 :] == 0).all()


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 4}], ids=str)
def test_eight_devices_say_what_one_says(tiny_config, sizes):
    config = tiny_config("encoder_decoder")
    tokens, real = padded(PROMPTS * 2, left=False)

    def run() -> np.ndarray:
        params = jax.jit(lambda: state.init_params(config, 3))()
        graph = state.graph(config)
        program = jax.jit(
            lambda params, tokens, real: decoding.infill(
                nnx.merge(graph, params), tokens, real, jax.random.key(0), max_tokens=NEW, vocab_size=VOCAB,
                eos_id=EOS, sampling=Sampling(),
            )
        )  # fmt: skip
        return np.asarray(program(params, placed_tokens, placed_real))

    placed_tokens, placed_real = tokens, real
    alone = run()
    mesh, rules = MeshConfig(**sizes).build(), sharding.Rules(length=None)  # as `generate` has them
    placed_tokens, placed_real = jax.device_put(
        (tokens, real), sharding.named(mesh, rules, ("batch", "length"))
    )
    with sharding.layout(mesh, rules):
        assert (run() == alone).all()
