"""Several objectives in one run: each learns from its share of the rows of every batch."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from pretrain.errors import InputError
from pretrain.objectives.base import Family, Objective, Part

_SHARED = ("label_smoothing", "z_loss", "loss_chunks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """One model learns all of its parts, each an objective on a corpus at a rate.

    A row holds examples of one part; which part's turn it is follows from the row's number, so that the rates
    hold to a row, and can change at given steps. The loss is the mean over all tokens of a batch, and each
    part's figures are reported by themselves. Settings of the loss are the mixture's and not its parts'.

    `generate` speaks to the model as the first part does.

    Attributes:
        parts: at least one; all of one family.
    """

    parts: Sequence[Part] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or not all(isinstance(part, Part) for part in self.parts):
            raise InputError(
                f"Mixture.parts is {self.parts!r}; give a list of parts, such as [@base.Part()]."
            )
        twice = [name for name, n in collections.Counter(part.called for part in self.parts).items() if n > 1]
        if twice:
            raise InputError(
                f"Mixture.parts has two that are called {twice[0]!r}: give each a name of its own."
            )
        for part in self.parts:
            if isinstance(part.objective, Mixture):
                raise InputError(
                    f"Mixture.parts has {part.called!r}, a mixture itself: list its parts instead."
                )
            if type(part.objective).loss is not Objective.loss:
                raise InputError(
                    f"Mixture.parts has {part.called!r}, whose loss is no cross entropy of tokens: it cannot "
                    "share batches with others."
                )
            if part.objective.family != self.family:
                raise InputError(
                    f"Mixture.parts are of one family, but {part.called!r} is of the {part.objective.family} "
                    f"family and {self.parts[0].called!r} of the {self.family} family."
                )
            for name in _SHARED:
                if getattr(part.objective, name) != getattr(Objective, name):
                    raise InputError(
                        f"Set {name} on the mixture: its part {part.called!r} has one of its own."
                    )
        for step in self.steps:
            if not any(part.rate_at(step) for part in self.parts):
                raise InputError(
                    f"The rates of Mixture.parts are all 0 from step {step} on: let some part have one."
                )

    @property
    def steps(self) -> list[int]:
        """From which the rates are others than before, the first of them 0."""
        return sorted({step for part in self.parts for step, _ in part.rates})

    @property
    def family(self) -> Family:
        return self.parts[0].objective.family

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        for part in self.parts:
            part.objective.check(lengths, vocabulary)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        raise NotImplementedError("Each part of a mixture has chunks of its own.")

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        raise NotImplementedError("Each part of a mixture has features of its own.")

    def converter(self, pack: bool) -> Any:
        raise NotImplementedError("Each part of a mixture has rows of its own.")

    @property
    def bidirectional_prompt(self) -> bool:
        return self.parts[0].objective.bidirectional_prompt

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        return self.parts[0].objective.encode_prompt(text, feature)

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        return self.parts[0].objective.complete(inputs, targets, vocabulary)
