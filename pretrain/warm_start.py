"""Beginning with another run's parameters: continued pretraining, with fresh optimizer state and data."""

import dataclasses
import fnmatch
import os
from collections.abc import Mapping, Sequence

from pretrain.errors import InputError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Which parameters to take from another run's checkpoint.

    Attributes:
        model_dir: of the other run.
        step: of its checkpoint; None is its newest.
        include: patterns of names such as "decoder/*"; a parameter is taken if one of them matches.
        exclude: patterns of names that are not taken all the same.
    """

    model_dir: str | os.PathLike
    step: int | None = None
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def plan(self, stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> "Plan":
        """What becomes of each parameter, by the shapes in the checkpoint and in the new model.

        Raises InputError if a parameter that is to be taken has another shape, or if none is.

        >>> start = WarmStart(model_dir="runs/a", exclude=["logits"])
        >>> start.plan({"w": (2, 3), "old": (4,), "logits": (9,)}, {"w": (2, 3), "logits": (8,)})
        Plan(loaded=('w',), skipped=('logits', 'old'), new=('logits',))
        """
        chosen = [name for name in stored if _any(self.include, name) and not _any(self.exclude, name)]
        loaded = sorted(name for name in chosen if name in wanted)
        for name in loaded:
            if stored[name] != wanted[name]:
                raise InputError(
                    f"{name} has shape {stored[name]} in {self.model_dir} but {wanted[name]} in this model: "
                    f"use sizes that agree, or leave it out with WarmStart.exclude = ['{name}']."
                )
        if not loaded:
            raise InputError(
                f"WarmStart takes no parameter of {self.model_dir}: its patterns and this model have none in "
                f"common with {', '.join(sorted(stored)[:3])}, ...; change include or exclude."
            )
        skipped, new = sorted(set(stored) - set(loaded)), sorted(set(wanted) - set(loaded))
        return Plan(tuple(loaded), tuple(skipped), tuple(new))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Names of parameters: loaded from the checkpoint; skipped, there but not taken; new, begun afresh."""

    loaded: Sequence[str]
    skipped: Sequence[str]
    new: Sequence[str]


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
