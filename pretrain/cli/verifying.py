"""What a person sees of a verification: phases, kills as they happen, and what was compared."""

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pretrain.verification import Kill, Report


class ConsoleObserver:
    """A bar for each launch on a terminal, plain lines elsewhere. A context, to end the bar."""

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed:,}/{task.total:,}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> "ConsoleObserver":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def began(self, what: str) -> None:
        self._bar.reset(self._task, description=what, total=self._steps)
        if not self._console.is_terminal:
            self._console.print(what)

    def reached(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def killed(self, kill: Kill) -> None:
        self._console.print(f"killed {kill.whom} {_place(kill.hit)}, after step {kill.step:,}")


def _place(moment: str) -> str:
    return {"start": "before its first step", "evaluation": "in an evaluation"}.get(moment, f"in a {moment}")


def show(console: Console, report: Report, asked: int) -> None:
    """The tables of kills and comparisons, and what they come to."""
    columns = ("kill", "aimed at", "hit", "after step", "resumes from", "processes", "ended in")
    kills = Table(*columns, box=None, padding=(0, 3, 0, 0))
    for number, kill in enumerate(report.kills, 1):
        steps = (f"{kill.step:,}", f"{kill.resumes:,}")
        kills.add_row(str(number), kill.aim, kill.hit, *steps, kill.whom, f"{kill.seconds:.1f} s")
    compared = Table("compared", "equal", "different", "the first", box=None, padding=(0, 3, 0, 0))
    for each in report.comparisons:
        compared.add_row(each.what, f"{each.equal:,}", f"{each.different:,}", each.first)
    for table in (kills, compared):
        console.print(table)
        console.print()
    if len(report.kills) < asked:
        console.print(
            f"The run came to its end before {asked - len(report.kills)} of {asked} kills: add steps."
        )
    different = [each.what for each in report.comparisons if each.different]
    if different:
        console.print(
            f"Not the same run: {', '.join(different)} differ. The first run is the one not killed."
        )
    elif not report.kills:
        console.print("The run was never killed, so nothing was shown.")
    else:
        times = len(report.kills)
        console.print(f"The same run, bit for bit, through {times} kill{'s' if times != 1 else ''}.")
