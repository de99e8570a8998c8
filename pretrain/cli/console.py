"""What a person sees of a training run: a table, then a bar on a terminal or plain lines elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pretrain.objectives.base import Objective
from pretrain.training.loop import Facts
from pretrain.warm_start import Plan

_MIXES = {
    "rows": "which share the rows of a batch", "batches": "which take turns by batches",
    "losses": "whose losses are added",
}  # fmt: skip


def si(value: float) -> str:
    """A number people can read.

    >>> si(1234567), si(2.5e13), si(12)
    ('1.23 M', '25.0 T', '12')
    """
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:#.3g} {unit}".replace(". ", " ")
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """
    >>> duration(41.2), duration(3700), duration(200_000)
    ('41 s', '1 h 01 min', '2 d 07 h')
    """
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02} h"
    if minutes >= 60:
        return f"{hours} h {minutes % 60:02} min"
    return f"{minutes} min {round(seconds) % 60:02} s" if minutes >= 10 else f"{seconds:.0f} s"


def _objective(objective: Objective) -> list[tuple[str, str]]:
    """An objective with all of its settings, or a line for each part of a mixture with those it changes."""
    if len(objective.parts) == 1:
        return [("objective", str(objective))]
    lines = [f"{objective.name} of {len(objective.parts)} parts, {_MIXES[objective.mixes]}"]
    for part in objective.parts:
        changed = {
            field.name: getattr(part.objective, field.name)
            for field in dataclasses.fields(part.objective)
            if getattr(part.objective, field.name) != field.default
        }
        settings = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        rate = "" if objective.mixes == "losses" else f"rate {part.rate}, "
        own = "" if part.lengths is None else f"{dict(part.lengths)}, "
        lines.append(
            f"  {part.called}: {rate}weight {part.weight:g}, {own}{type(part.objective).__name__}({settings})"
        )
    return list(zip(("objective", *[""] * len(objective.parts)), lines, strict=True))


class ConsoleObserver:
    """Draws the facts, the steps and the evaluations of a run on a console."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Progress | None = None
        self._steps = 0

    def started(self, facts: Facts) -> None:
        self.stop()  # of the run before it was rolled back
        run, self._steps = facts.run, facts.run.steps
        for name, value in (
            ("task", f"{run.corpus().name}, {run.train_split}, {'packed' if run.pack else 'not packed'}"),
            *_objective(run.objective),
            ("model", f"{run.model.family}, {si(facts.parameters)} parameters, {run.model.dtype}"),
            ("optimizer", f"{type(run.optimizer).__name__}, {run.optimizer.schedule}"),
            ("devices", f"{facts.device}, mesh {', '.join(f'{k}={v}' for k, v in facts.mesh.items())}"),
            ("batch", f"{run.batch_size} x {dict(run.lengths)} = {facts.tokens_per_step:,} tokens a step"),
            ("work", f"{si(facts.flops_per_step)}FLOP a step"),
            ("steps", f"{facts.first_step:,} to {run.steps:,}, seed {run.seed}"),
            ("model dir", f"{facts.model_dir} (checkpoint every {run.checkpoint_period:,} steps)"),
        ):
            self._console.print(Text.assemble((f"{name:11}", "bold"), value), soft_wrap=True)
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("step {task.completed:,}/{task.total:,}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "train", total=run.steps, completed=facts.first_step, figures="compiling"
        )
        self._bar.start()

    def progressed(self, step: int, figures: Mapping[str, float]) -> None:
        text = f"loss {figures['loss']:.3f}" if "loss" in figures else "skipped"
        if "tokens_per_second" in figures:
            text += f"  {si(figures['tokens_per_second'])} tokens/s"
        if "model_flops_utilisation" in figures:
            text += f"  {figures['model_flops_utilisation']:.0%} MFU"
        if self._bar:
            self._bar.update(self._task, completed=step, figures=text)
        else:
            if "steps_per_second" in figures:
                text += f"  {duration((self._steps - step) / figures['steps_per_second'])} left"
            self._say(f"step {step:,}/{self._steps:,}  {text}")

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        shown = ("loss", "accuracy", "bits_per_byte")
        text = "  ".join(f"{name.replace('_', ' ')} {figures[name]:.3f}" for name in shown if name in figures)
        self._say(f"step {step:,} held out: {text}")
        parts = [name.removeprefix("loss/") for name in figures if name.startswith("loss/")]
        for part in parts:
            loss, accuracy = figures[f"loss/{part}"], figures[f"accuracy/{part}"]
            self._say(f"  {part}: loss {loss:.3f}  accuracy {accuracy:.3f}")

    def saved(self, step: int) -> None:
        if not self._bar:
            self._say(f"step {step:,} checkpoint")

    def happened(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "compiled":
            found = ", found in the compilation cache" if fields["cached"] else ""
            self._say(f"compiled in {duration(fields['seconds'])}{found}")
        if event == "traced":
            self._say(
                f"traced steps are in {fields['directory']}: tensorboard --logdir {fields['directory']}"
            )

    def said(self, message: str) -> None:
        self._say(message)

    def warm_started(self, plan: Plan) -> None:
        for name, what in (("taken", plan.loaded), ("not taken", plan.skipped), ("new", plan.new)):
            if what:
                self._say(f"warm start: {len(what)} parameters {name}: {', '.join(what)}")

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
