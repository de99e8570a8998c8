"""The job that everyone is timed on, and the loop in which a timed program waits for its turns.

A program says how many parameters it trains, how much longer its first step took than its second, and the
floating point operations of a step where it knows them (a model's as docs/metrics.md counts). Then it
reads from standard input how many steps to make, and answers with the seconds of each: lines of JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and a batch of it; a decoder has no inputs."""

    layers: int
    embed: int
    heads: int
    mlp: int
    inputs: int
    targets: int
    head_dim: int = 64
    vocab: int = 8192
    batch: int = 8

    @property
    def tokens(self) -> int:
        return self.batch * (self.inputs + self.targets)

    def ids(self, length: int) -> np.ndarray:
        """int64 [batch, length], random: no padding, and no id that means something."""
        return np.random.RandomState(0).randint(3, 259, (self.batch, length))


SHAPES = {
    "encoder_decoder": Shape(layers=4, embed=512, heads=6, mlp=1024, inputs=512, targets=114),
    "decoder": Shape(layers=8, embed=512, heads=8, mlp=1408, inputs=0, targets=512),
}
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01


def serve(
    parameters: int, step: Callable[[], object], compile_seconds: float | None = None,
    flops: float | None = None,
) -> None:  # fmt: skip
    """step: one update, that returns when it is done; compile_seconds: where two were made before."""

    def timed() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    if compile_seconds is None:
        compile_seconds = timed() - timed()
    say({"parameters": parameters, "compile_seconds": compile_seconds, "flops": flops})
    for line in sys.stdin:
        say({"seconds": [timed() for _ in range(int(line))]})


def say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)
