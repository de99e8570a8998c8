"""A run, as one frozen value: everything that decides what is computed."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import seqio

from pretrain.bad_steps import BadSteps
from pretrain.data import vocabulary as vocabularies
from pretrain.errors import InputError
from pretrain.models import backends
from pretrain.models.config import ModelConfig
from pretrain.objectives.base import Objective
from pretrain.optim import Optimizer
from pretrain.parallel.mesh import MeshConfig, described
from pretrain.parallel.sharding import Rules, check_rules, rows_of_processes
from pretrain.warm_start import WarmStart


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to train on what, and how. Built by `config.load` from a gin file.

    task: a SeqIO Task or Mixture, or the name of a registered one; it knows no objective.
    lengths: tokens of each feature of an example, such as {"inputs": 512, "targets": 114}.
    batch_size: examples a step, over all devices and processes.
    microbatches: parts that the batch of a step is computed in, one after the other, for less memory; the
        update is that of the whole batch (gradient accumulation).
    pack: several short examples to a row, kept apart by segment ids.
    use_cached: read the task's SeqIO cache instead of tokenizing on the fly.
    stores: directories that `pretrain cache` made of the task, to train from in place of the stream; any
        number of processes reads the same batches from them. None streams the task.
    store_rates: how often each store is read, relative to the others; None is in proportion to their tokens.
    shuffle_buffer: examples held back to shuffle; part of every checkpoint, so exact but not free.
    eval_batches: batches of `eval_split` an evaluation reads (of each part of a mixture, where each has
        batches of its own); None reads it whole.
    keep_checkpoints: the newest so many stay, and every multiple of `keep_period` steps for ever.
    bad_steps: what becomes of a step that would ruin the run.
    warm_start: another run's parameters to begin with; None begins with random ones.
    peak_flops: floating point operations a second of one device, for model FLOPs utilisation, where
        the device is not in the table of `training/hardware.py`.
    """

    task: str | seqio.Task | seqio.Mixture
    objective: Objective
    model: ModelConfig
    optimizer: Optimizer
    lengths: Mapping[str, int]
    steps: int
    batch_size: int
    microbatches: int = 1
    seed: int = 0
    pack: bool = False
    use_cached: bool = False
    stores: Sequence[str | os.PathLike] | None = None
    store_rates: Sequence[float] | None = None
    shuffle_buffer: int = 1000
    train_split: str = "train"
    eval_split: str = "validation"
    eval_period: int = 1000
    eval_batches: int | None = 50
    checkpoint_period: int = 1000
    keep_checkpoints: int = 3
    keep_period: int | None = None
    log_period: int = 50
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    rules: Rules = dataclasses.field(default_factory=Rules)
    bad_steps: BadSteps = dataclasses.field(default_factory=BadSteps)
    warm_start: WarmStart | None = None
    peak_flops: float | None = None

    def __post_init__(self):
        counts = ("steps", "batch_size", "microbatches", "shuffle_buffer", "keep_checkpoints")
        for name in (*counts, "eval_period", "checkpoint_period", "log_period"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"RunConfig.{name} is {value!r}; give a whole number of at least 1.")
        for name in ("eval_batches", "keep_period"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(
                    f"RunConfig.{name} is {value!r}; give a whole number of at least 1, or None."
                )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(f"RunConfig.seed is {self.seed!r}; give a whole number from 0 to 2^32 - 1.")
        for name, kinds in (
            ("task", (str, seqio.Task, seqio.Mixture)),
            ("objective", (Objective,)),
            ("model", (ModelConfig,)),
            ("optimizer", (Optimizer,)),
            ("lengths", (Mapping,)),
            ("mesh", (MeshConfig,)),
            ("rules", (Rules,)),
            ("bad_steps", (BadSteps,)),
            ("warm_start", (WarmStart, type(None))),
        ):
            if not isinstance(getattr(self, name), kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                example = "{'inputs': 512, 'targets': 114}" if name == "lengths" else "@module.Name()"
                raise InputError(
                    f"RunConfig.{name} is {getattr(self, name)!r}; give a {wanted}, such as {example}."
                )
        if isinstance(self.stores, str | os.PathLike) or (self.stores is not None and not self.stores):
            raise InputError(
                f"RunConfig.stores is {self.stores!r}; give a list of directories, such as ['/data/c4']."
            )
        if self.objective.mixes == "batches" and self.bad_steps.spike is not None:
            raise InputError(
                f"BadSteps.spike is {self.bad_steps.spike}, but with mixes='batches' the steps before are of "
                "other parts, whose losses are of another height: set spike=None."
            )
        for part in self.objective.parts:
            if part.objective.family not in self.model.expresses:
                raise InputError(
                    f"RunConfig.objective {type(part.objective).__name__} is of the {part.objective.family} "
                    f"family, but RunConfig.model of the {self.model.family} family: choose both of one."
                    + self.model.to_express(part.objective.family)
                )

    def lengths_of(self, part: int) -> Mapping[str, int]:
        """The row lengths of a part of the objective."""
        return self.objective.lengths_of(part, self.lengths)

    def step_tokens(self, step: int = 0) -> float:
        """Cells of a step; where batches of a mixture differ, on average by the rates of this step."""
        return self._of_step(step, lambda lengths: sum(lengths.values()))

    def step_flops(self, step: int = 0) -> float:
        """Floating point operations of the matrix products of a step's forward pass; averages as above."""
        return self._of_step(step, self.model.flops)

    def _of_step(self, step: int, example: Callable[[Mapping[str, int]], float]) -> float:
        """Of all examples of a step."""
        parts = self.objective.parts
        if self.objective.mixes == "rows":
            return self.batch_size * example(self.lengths)
        each = [self.batch_size * example(self.lengths_of(number)) for number in range(len(parts))]
        if self.objective.mixes == "losses":
            return sum(each)
        rates = [part.rate_at(step) for part in parts]
        return sum(rate * one for rate, one in zip(rates, each, strict=True)) / sum(rates)

    def corpus(self) -> seqio.Task | seqio.Mixture:
        """The task before any objective, looked up if it was given by name."""
        return _corpus(self.task, "RunConfig.task")

    def corpora(self) -> list[seqio.Task | seqio.Mixture]:
        """What each part of the objective reads; of one that is no mixture, the run's corpus alone."""
        return [
            self.corpus() if part.task is None else _corpus(part.task, f"The task of part {part.called!r}")
            for part in self.objective.parts
        ]

    def tasks(self) -> list[seqio.Task]:
        """The tasks that the corpora are made of, each once."""
        found: dict[str, seqio.Task] = {}
        for corpus in self.corpora():
            for task in corpus.tasks if isinstance(corpus, seqio.Mixture) else [corpus]:
                found.setdefault(task.name, task)
        return list(found.values())

    def vocabulary(self) -> seqio.Vocabulary:
        """The vocabulary of the targets, which is that of the model."""
        return self.corpus().output_features["targets"].vocabulary

    def check(self) -> None:
        """Everything that can be refused before data or devices are touched. Raises InputError."""
        vocabulary = self.vocabulary()
        if vocabulary.vocab_size > self.model.vocab_size:
            raise InputError(
                f"The vocabulary of task {self.corpus().name!r} has {vocabulary.vocab_size} ids "
                f"({vocabularies.num_sentinels(vocabulary)} of them sentinels), but "
                f"{type(self.model).__name__}.vocab_size is {self.model.vocab_size}; set it to "
                f"{-(-vocabulary.vocab_size // 128) * 128}."
            )
        for task in self.tasks():
            if self.use_cached and task.cache_dir is None:
                raise InputError(
                    f"RunConfig.use_cached is True, but task {task.name!r} is in none of SeqIO's cache "
                    "directories: cache it there, or set use_cached=False."
                )
        for corpus, part in zip(self.corpora(), self.objective.parts, strict=True):
            self._check_corpus(corpus, part.objective.reads)
        self.objective.check(self.lengths, vocabulary)

    def _check_corpus(self, corpus: seqio.Task | seqio.Mixture, reads: Sequence[str]) -> None:
        for setting, split in (
            ("train_split", self.train_split),
            ("eval_split (or --split)", self.eval_split),
        ):
            if split not in corpus.splits:
                raise InputError(
                    f"Task {corpus.name!r} has no split {split!r}: set {setting} to one of "
                    f"{', '.join(corpus.splits)}."
                )
        found = [corpus.output_features[name].vocabulary for name in reads if name in corpus.output_features]
        if any(vocabulary != self.vocabulary() for vocabulary in found):
            raise InputError(
                f"Task {corpus.name!r} has another vocabulary in {' or '.join(reads)} than task "
                f"{self.corpus().name!r} of the run has in its targets: one model has one."
            )

    def check_batch(self, mesh: jax.sharding.Mesh) -> None:
        """Raises InputError if the batch and the lengths of its rows cannot be cut evenly over the mesh, or
        the model's attention is for other devices.
        """
        backends.check_platform(self.model.attention, mesh.devices.flat[0].platform)
        if self.objective.compares_rows and (self.microbatches > 1 or self.batch_size < 2):
            raise InputError(
                f"{type(self.objective).__name__} compares the rows of a batch with each other: give a "
                "batch_size of at least 2 and microbatches=1; its own setting `chunks` saves memory."
            )
        axis_sizes = mesh.shape
        check_rules(self.rules, axis_sizes)
        shares = self.rules.shares("batch", axis_sizes)
        together = self.microbatches * self.objective.chunks
        if self.batch_size % (parts := shares * together):
            what = "microbatches" if self.microbatches > 1 else "chunks"
            times = f"{together} {what} times " if together > 1 else ""
            raise InputError(
                f"RunConfig.batch_size is {self.batch_size}: make it a multiple of {parts}, {times}the "
                f"shares of the mesh ({described(axis_sizes)})."
            )
        held = set(rows_of_processes(mesh, self.rules, self.batch_size).values())
        if sum(map(len, held)) != self.batch_size or len(set(map(len, held))) > 1:
            raise InputError(
                f"On the mesh ({described(axis_sizes)}) some processes hold a part of each other's rows of "
                "the batch: choose sizes so that each holds rows of its own, or all that another holds."
            )
        for number, part in enumerate(self.objective.parts):
            chunks = max(self.objective.loss_chunks, part.objective.loss_chunks)
            lengths = self.lengths_of(number)
            predicted = "targets" if "targets" in lengths else "inputs"
            whose = "RunConfig" if part.lengths is None else f"Part {part.called!r}"
            for feature, length in lengths.items():
                cuts = self.rules.shares("length", axis_sizes)
                cuts *= chunks if feature == predicted else 1
                if length % cuts:
                    raise InputError(
                        f"{whose}.lengths[{feature!r}] is {length}: make it a multiple of {cuts}, the "
                        f"shares of the mesh ({described(axis_sizes)}) times the objective's loss_chunks."
                    )


def _corpus(task: str | seqio.Task | seqio.Mixture, setting: str) -> seqio.Task | seqio.Mixture:
    if isinstance(task, seqio.Task | seqio.Mixture):
        return task
    try:
        return seqio.get_mixture_or_task(task)
    except ValueError:
        known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
        raise InputError(
            f"{setting} is {task!r}, which nothing that the run file imports registers: import "
            f"the module that does, or use one of {', '.join(known) or 'none'}."
        ) from None
