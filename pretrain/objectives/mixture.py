"""Several objectives in one run: each learns from its share of the rows, the batches or the loss."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import seqio

from pretrain.data import rows
from pretrain.errors import InputError
from pretrain.objectives.base import Family, Mixes, Objective, Part

# The row lengths that each family reads.
_READS: Mapping[Family, Sequence[str]] = {
    "encoder_decoder": ("inputs", "targets"),
    "decoder": ("targets",),
    "encoder": ("inputs",),
    "two_stream": ("inputs",),
    "dual_encoder": ("inputs", "targets"),
}
_OF_LOSS = ("label_smoothing", "z_loss", "loss_chunks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """One model learns all of its parts, each an objective on a corpus at a rate.

    mixes="rows": the rows of every batch are shared out. A row holds examples of one part; which part's turn
    it is follows from the row's number, so that the rates hold to a row, and can change at given steps. The
    loss is the mean over all tokens of a batch, so its settings are the mixture's and not its parts'. All
    parts are of one family.

    mixes="batches": a step is of one part, whose turn it is by the same rates. Its rows may have lengths of
    their own (`Part.lengths`), and its loss is any: masked LM and contrastive pairs on one encoder.

    mixes="losses": a step has `batch_size` rows of each part, and its loss is the sum of the parts' mean
    losses, each times `Part.weight`. Parts of one corpus read it in the same order.

    `generate` speaks to the model as the first part does.

    Attributes:
        parts: at least one; two where they mix batches or losses.
        mixes: "rows", "batches" or "losses".
    """

    parts: Sequence[Part] = ()
    mixes: Mixes = "rows"  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixes not in get_args(Mixes):
            raise InputError(f"Mixture.mixes must be one of {get_args(Mixes)}, not {self.mixes!r}.")
        if type(self) is Mixture and not self.join_documents:  # a subclass hands it on to parts of its own
            raise InputError("Mixture.join_documents has no effect on its parts: set it on each of them.")
        listed = isinstance(self.parts, list | tuple)
        if not listed or not self.parts or not all(isinstance(part, Part) for part in self.parts):
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
        if self.mixes == "rows":
            self._check_rows()
        else:
            self._check_batches()
        for step in self.steps:
            if not any(part.rate_at(step) for part in self.parts):
                raise InputError(
                    f"The rates of Mixture.parts are all 0 from step {step} on: let some part have one."
                )

    def _check_rows(self) -> None:
        for part in self.parts:
            if type(part.objective).loss is not Objective.loss:
                raise InputError(
                    f"Mixture.parts has {part.called!r}, whose loss is no cross entropy of tokens: it cannot "
                    "share batches with others. Set mixes='batches' or mixes='losses'."
                )
            if part.objective.family != self.family:
                raise InputError(
                    f"Mixture.parts are of one family where they mix rows, but {part.called!r} is of the "
                    f"{part.objective.family} family and {self.parts[0].called!r} of the {self.family} "
                    "family."
                )
            if part.lengths is not None:
                raise InputError(
                    f"Part {part.called!r} has lengths of its own, but shares batches with others: set "
                    "mixes='batches' or mixes='losses'."
                )
            for name in _OF_LOSS:
                if getattr(part.objective, name) != getattr(Objective, name):
                    raise InputError(
                        f"Set {name} on the mixture: its part {part.called!r} has one of its own."
                    )

    def _check_batches(self) -> None:
        if len(self.parts) < 2:
            raise InputError(f"Mixture.mixes={self.mixes!r} needs at least two parts.")
        for name in _OF_LOSS:
            if getattr(self, name) != getattr(Objective, name):
                raise InputError(f"Set {name} on the parts: with mixes={self.mixes!r} each has its own.")
        if self.mixes == "losses" and any(part.rate != 1.0 for part in self.parts):
            raise InputError(
                "Mixture.mixes='losses' has all parts in every step, so rates mean nothing: give each part a "
                "weight instead."
            )

    @property
    def steps(self) -> list[int]:
        """From which the rates are others than before, the first of them 0."""
        return sorted({step for part in self.parts for step, _ in part.rates})

    @property
    def family(self) -> Family:
        return self.parts[0].objective.family

    @property
    def compares_rows(self) -> bool:  # type: ignore[override]
        return any(part.objective.compares_rows for part in self.parts)

    @property
    def chunks(self) -> int:  # type: ignore[override]
        return math.lcm(*(part.objective.chunks for part in self.parts))

    def lengths_of(self, part: int, lengths: Mapping[str, int]) -> Mapping[str, int]:
        if self.mixes == "rows":
            return lengths
        own = self.parts[part]
        if own.lengths is not None:
            return own.lengths
        return {name: lengths[name] for name in _READS[own.objective.family] if name in lengths}

    def check(self, lengths: Mapping[str, int], vocabulary: seqio.Vocabulary) -> None:
        for number, part in enumerate(self.parts):
            part.objective.check(self.lengths_of(number, lengths), vocabulary)

    def chunk_length(self, lengths: Mapping[str, int]) -> int:
        raise NotImplementedError("Each part of a mixture has chunks of its own.")

    def output_features(self, corpus_features: Mapping[str, seqio.Feature]) -> dict[str, seqio.Feature]:
        raise NotImplementedError("Each part of a mixture has features of its own.")

    def converter(self, pack: bool) -> Any:
        raise NotImplementedError("Each part of a mixture has rows of its own.")

    def loss(self, model, batch: Mapping[str, Any], key, factors: Any = None) -> Any:
        """As that of an objective; of batches and losses, the sum over the parts that the batch holds.

        factors: what `factors` said of the global batch; None is 1 for each part.
        """
        if self.mixes == "rows":
            return super().loss(model, batch, key)
        from pretrain import losses  # here, because the data side of an objective needs no jax

        found = []
        for number, own in rows.by_part(batch).items():
            sums = self.parts[number].objective.loss(model, own, losses.key_of(number, key))
            factor = self.parts[number].weight * (1.0 if factors is None else factors[number])
            found.append((number, sums, factor))
        return losses.added(found, len(self.parts))

    @property
    def added(self) -> Mapping[str, float] | None:
        return {part.called: part.weight for part in self.parts} if self.mixes == "losses" else None

    def factors(self, batch: Mapping[str, Any]) -> Any:
        """float32 [parts] by which the sums of all parts, over all of their weight, are the sum of means."""
        if self.mixes != "losses":
            return None
        from pretrain import losses  # here, because the data side of an objective needs no jax

        own = rows.by_part(batch)
        return losses.factors_of_means(
            [part.objective.weight(own[number]) for number, part in enumerate(self.parts)]
        )

    @property
    def bidirectional_prompt(self) -> bool:
        return self.parts[0].objective.bidirectional_prompt

    def encode_prompt(self, text: str, feature: seqio.Feature) -> list[int]:
        return self.parts[0].objective.encode_prompt(text, feature)

    def complete(self, inputs, targets, vocabulary: seqio.Vocabulary) -> list[int]:
        return self.parts[0].objective.complete(inputs, targets, vocabulary)
