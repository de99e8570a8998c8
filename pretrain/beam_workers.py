"""Work on the machines of an Apache Beam runner. Only this module imports Beam, which is an extra."""

import contextlib
import io
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.utils.shared import Shared

from pretrain.errors import InputError
from pretrain.workers import Work, WorkerError

# Beam ends the message of what a worker raised so, and leaves that of what led to it as it was.
_REFUSED = re.compile(
    rf"^{re.escape(f'{InputError.__module__}.{InputError.__qualname__}')}: (.+) \[while running '.*'\]$", re.M
)


def pipeline(runner: str, options: Sequence[str] = ()) -> beam.Pipeline:
    """An empty pipeline of a runner.

    Args:
        runner: a name that Beam knows, such as DirectRunner, or the full name of a class.
        options: its settings, each NAME=VALUE, or NAME where it has no value.

    Raises:
        InputError: Beam has no such runner, or refuses an option or the lack of one.
    """
    # Without triggers, as here, the flag does nothing but keep DirectRunner from its first choice: to
    # download Prism, a program in Go, and to run it (`SwitchingDirectRunner` in Beam 2.77).
    flags = ["--allow_unsafe_triggers", *(f"--{option}" for option in options)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # argparse lists all options there are
            parsed = PipelineOptions(flags)
            parsed.get_all_options()
        return beam.Pipeline(runner=runner, options=parsed)
    except SystemExit as error:
        raise _refused(runner, said.getvalue().rpartition("error: ")[2]) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise _refused(runner, str(error)) from error


def _refused(runner: str, why: str) -> InputError:
    reason = " ".join(why.split()).rstrip(".")
    return InputError(f"Beam refuses --runner {runner} ({reason}): correct it, or its --runner-option.")


def run(pipeline: beam.Pipeline, start: Callable[[], Work], jobs: Sequence[Any]) -> None:
    """Has the jobs done by the workers of a pipeline; what they report is lost.

    A runner may do a job again, and even twice at a time.

    Args:
        pipeline: empty.
        start: called once in each process; a function of a module or a `functools.partial` of one. It
            returns a function that does a job, in several threads at a time if the runner has them.
        jobs: what to do, anything that can be pickled.

    Raises:
        InputError: the one that a worker raised.
        WorkerError: the pipeline was stopped.
        Exception: a worker raised something else; the message ends in its traceback.
    """
    # Reshuffle keeps Beam from giving all jobs to one worker, as one bundle.
    _ = pipeline | "jobs" >> beam.Create(jobs) | beam.Reshuffle() | "work" >> beam.ParDo(_DoJob(start))
    try:
        state = _finished(pipeline.run())
    except Exception as error:
        if str(error).startswith("KeyboardInterrupt [while running"):  # a worker in this process met it
            raise KeyboardInterrupt from error
        if refused := _REFUSED.search("".join(traceback.format_exception_only(error))):
            raise InputError(refused[1]) from error
        raise
    if state != PipelineState.DONE:
        raise WorkerError(f"the pipeline ended as {state}: see what its runner says")


def _finished(result: PipelineResult) -> str:
    """How the pipeline ended; it is cancelled if this process is interrupted."""
    try:
        return result.wait_until_finish()
    except KeyboardInterrupt:
        result.cancel()
        raise


class _DoJob(beam.DoFn):
    def __init__(self, start: Callable[[], Work]):
        self._start, self._shared = start, Shared()
        self._done = beam.metrics.Metrics.counter("pretrain", "jobs")

    def setup(self) -> None:
        self._work = self._shared.acquire(self._start)  # threads of a process share it, and start it once

    def process(self, job: Any) -> None:
        self._work(job, lambda content: None)
        self._done.inc()
