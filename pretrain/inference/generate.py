"""Text in, text out: prompts to batches, batches through the decoding loop, tokens back to text."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import seqio
from flax import nnx

from pretrain.data import vocabulary as vocabularies
from pretrain.errors import InputError
from pretrain.inference import decoding
from pretrain.inference.sampling import Sampling
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training import state

# Prompt lengths are rounded up to this, so that prompts of about a length share a compiled program.
LENGTH_STEP = 64


@dataclasses.dataclass(frozen=True)
class Generation:
    """One prompt and what became of it. output: what the model said; text: the prompt with that filled in."""

    prompt: str
    output: str
    text: str


def generate(
    run: RunConfig, params: state.Params, mesh: jax.sharding.Mesh, prompts: Sequence[str], *,
    max_tokens: int | None = None, sampling: Sampling | None = None, seed: int = 0,
) -> list[Generation]:  # fmt: skip
    """Infills (encoder-decoder) or continues (decoder) each prompt; call it under `sharding.layout`.

    max_tokens: of new text; None is as many as the run's lengths have room for. Raises InputError if a
    prompt is empty or longer than the lengths the model was trained on.
    """
    vocabulary = run.vocabulary()
    feature = run.corpus().output_features["targets"]
    encoded = [run.objective.encode_prompt(prompt, feature) for prompt in prompts]
    outputs = generate_tokens(run, params, mesh, encoded, max_tokens=max_tokens, sampling=sampling, seed=seed)
    return [
        Generation(
            prompt,
            vocabularies.readable(output, vocabulary),
            _as_begun(
                vocabularies.readable(run.objective.complete(ids, output, vocabulary), vocabulary),
                prompt,
                vocabulary,
            ),
        )
        for prompt, ids, output in zip(prompts, encoded, outputs, strict=True)
    ]


def _as_begun(text: str, prompt: str, vocabulary: seqio.Vocabulary) -> str:
    """Without the space that SentencePiece puts before every text."""
    spaced = isinstance(vocabulary, seqio.SentencePieceVocabulary)
    return text.removeprefix(" ") if spaced and prompt[:1].strip() else text


def check_writes(run: RunConfig) -> None:
    """Raises InputError where the model's family writes no text."""
    if run.model.family not in ("encoder_decoder", "decoder"):
        raise InputError(
            f"The model is of the {run.model.family} family, which writes no text: generate with an "
            "encoder-decoder or a decoder."
        )


def generate_tokens(
    run: RunConfig, params: state.Params, mesh: jax.sharding.Mesh, prompts: Sequence[vocabularies.Ids], *,
    max_tokens: int | None = None, sampling: Sampling | None = None, seed: int = 0,
) -> list[np.ndarray]:  # fmt: skip
    """Token ids for token ids: int32 [new tokens] for each prompt, up to and with EOS."""
    check_writes(run)
    encodes = run.model.family == "encoder_decoder"
    lengths = run.lengths_of(0)  # a mixture is spoken to as its first part
    room = lengths["targets"]
    longest = max(len(prompt) for prompt in prompts)
    if encodes:
        limit, max_tokens = lengths["inputs"], max_tokens or room
    else:
        limit, max_tokens = room - (max_tokens or 1), max_tokens or max(room - longest, 1)
    if min(len(prompt) for prompt in prompts) == 0:
        raise InputError("A prompt is empty; give at least one token of text.")
    if max_tokens > room:
        raise InputError(f"--max-tokens is {max_tokens}; the model was trained on at most {room}.")
    if longest > limit:
        raise InputError(
            f"A prompt has {longest} tokens, but beside the {max_tokens} to be generated there is room for "
            f"{limit} in the lengths the model was trained on, {dict(lengths)}; shorten it"
            f"{'' if encodes else ' or lower --max-tokens'}."
        )
    decode = program(run, max_tokens, sampling or Sampling(), run.vocabulary().eos_id)
    tokens = decoded(run, decode, params, mesh, prompts, seed)
    return [_until_eos(row, run.vocabulary().eos_id) for row in tokens]


def decoded(
    run: RunConfig, program: Callable[..., jax.Array], params: state.Params, mesh: jax.sharding.Mesh,
    prompts: Sequence[vocabularies.Ids], seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """int32 [prompts, new tokens]: what `program` says to each prompt."""
    rules = dataclasses.replace(run.rules, length=None)  # a new token has no length to cut
    rows = -len(prompts) % rules.shares("batch", mesh.shape) + len(prompts)
    left = run.model.family != "encoder_decoder"
    padded, real = _pad([*prompts, *[prompts[0]] * (rows - len(prompts))], left=left)
    placed = jax.device_put((padded, real), sharding.named(mesh, rules, ("batch", "length")))
    with sharding.layout(mesh, rules):
        return jax.device_get(program(params, *placed, jax.random.key(seed)))[: len(prompts)]


def _pad(prompts: Sequence[vocabularies.Ids], *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, P] tokens and 1 where they are real; a decoder's (left) also begin with BOS."""
    rows = [[decoding.BOS, *prompt] if left else list(prompt) for prompt in prompts]
    width = -(-max(map(len, rows)) // LENGTH_STEP) * LENGTH_STEP
    tokens, real = np.zeros((2, len(rows), width), np.int32)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, where], real[i, where] = row, 1
    return tokens, real


def program(run: RunConfig, max_tokens: int, sampling: Sampling, eos_id: int) -> Callable[..., jax.Array]:
    """The jitted (params, tokens [B, P], real [B, P], key) -> new tokens [B, T] of a run."""
    graph = state.graph(run.model)
    common = {
        "max_tokens": max_tokens,
        "vocab_size": run.vocabulary().vocab_size,
        "eos_id": eos_id,
        "sampling": sampling,
    }
    if run.model.family == "encoder_decoder":
        decode: Callable[..., jax.Array] = functools.partial(decoding.infill, **common)
    else:
        decode = functools.partial(
            decoding.continue_prompt, bidirectional_prompt=run.objective.bidirectional_prompt, **common
        )
    return jax.jit(lambda params, tokens, real, key: decode(nnx.merge(graph, params), tokens, real, key))


def _until_eos(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    ends = np.flatnonzero(tokens == eos_id)
    return tokens[: ends[0] + 1] if len(ends) else tokens
