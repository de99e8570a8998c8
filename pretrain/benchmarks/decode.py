"""How fast a run's model decodes: a pass over the prompt, then a token at a time."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pretrain.benchmarks.measuring import Machine, machine
from pretrain.errors import InputError
from pretrain.inference import generate
from pretrain.inference.sampling import Sampling
from pretrain.parallel import sharding
from pretrain.run import RunConfig
from pretrain.training import state

NEVER = -1  # an id that no token has: no row ends early


@dataclasses.dataclass(frozen=True)
class DecodeBenchmark:
    """What `benchmark` measured.

    one, all: seconds of each try that generated one token, and all `tokens` of them, for `rows` prompts of
    `prompt` tokens. model_bytes: of the parameters, which every token reads.
    """

    machine: Machine
    rows: int
    prompt: int
    tokens: int
    one: Sequence[float]
    all: Sequence[float]
    model_bytes: int

    @property
    def prompt_seconds(self) -> float:
        """Until the first token."""
        return statistics.median(self.one)

    @property
    def token_seconds(self) -> float:
        """Of each token after the first, for all rows."""
        return (statistics.median(self.all) - self.prompt_seconds) / (self.tokens - 1)

    def figures(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "machine": dataclasses.asdict(self.machine),
            "rows": self.rows,
            "prompt_tokens": self.prompt,
            "new_tokens": self.tokens,
            "prompt_seconds": self.prompt_seconds,
            "token_seconds": self.token_seconds,
            "tokens_per_second": self.rows / self.token_seconds,
            "prompt_tokens_per_second": self.rows * self.prompt / self.prompt_seconds,
            "model_bytes_per_second": self.model_bytes / self.token_seconds,
        }

    def samples(self) -> dict[str, Sequence[float]]:
        """What a plot shows, in seconds."""
        return {"one token": self.one, f"{self.tokens} tokens": self.all}


def benchmark(
    run: RunConfig, *, rows: int, prompt: int, tokens: int, tries: int,
    say: Callable[[str], None] = lambda _: None,
) -> DecodeBenchmark:  # fmt: skip
    """Generates greedily with random parameters, which take as long as others.

    prompt: tokens of each of `rows` prompts; tokens: to generate, at least 2. Raises InputError if the run's
    lengths have no room for them.
    """
    run.check()
    generate.check_writes(run)
    encodes = run.model.family == "encoder_decoder"
    room = dict(run.lengths_of(0))
    needed = {"inputs": prompt, "targets": tokens} if encodes else {"targets": prompt + tokens}
    for name, length in needed.items():
        if length > room[name]:
            raise InputError(
                f"--prompt {prompt} and --tokens {tokens} need {name} of {length}, but RunConfig.lengths is "
                f"{room}: ask for less, or set --gin.lengths."
            )
    mesh = run.mesh.build()
    with sharding.layout(mesh, run.rules):
        params = jax.jit(lambda: state.init_params(run.model, run.seed))()
    ids = np.random.RandomState(run.seed).randint(3, run.vocabulary().vocab_size, (rows, prompt))
    prompts = list(ids.astype(np.int32))

    def seconds(new: int) -> list[float]:
        say(f"{new} new tokens")
        program = generate.program(run, new, Sampling(), NEVER)
        decode = functools.partial(generate.decoded, run, program, params, mesh, prompts)
        decode()  # compiles
        return [_timed(decode) for _ in range(tries)]

    return DecodeBenchmark(
        machine(mesh), rows, prompt, tokens, seconds(1), seconds(tokens),
        sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    )  # fmt: skip


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
