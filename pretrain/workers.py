"""Work in several processes, each a fresh interpreter: neither TensorFlow nor ArrayRecord survives a fork."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from pretrain.errors import InputError

Report = Callable[[Any], None]
Work = Callable[[Any, Report], None]
_DONE = "done"


class WorkerError(RuntimeError):
    """A worker failed, or is gone; the message ends in its traceback, where it left one."""


def run(jobs: Sequence[Any], start: Callable[[], Work], count: int, report: Report) -> None:
    """Has the jobs done by `count` processes: each takes the next one when it has finished its last.

    If this process is killed, they end as well.

    Args:
        jobs: what to do, anything that can be pickled.
        start: called once in each process; a function of a module or a `functools.partial` of one. It
            returns a function that does a job, and may report anything that can be pickled.
        count: how many processes.
        report: called here with what they report.

    Raises:
        InputError: the one that a worker raised.
        WorkerError: a worker raised something else, or was killed. The others are ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting, processes = list(reversed(jobs)), []
    busy: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(min(count, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(start, theirs), daemon=True)
            process.start()
            theirs.close()  # so that ours ends when the worker does
            processes.append(process)
            busy[ours] = process
            ours.send(waiting.pop())
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                assert isinstance(connection, Connection)
                kind, content = _received(connection, busy[connection])
                if kind != _DONE:
                    report(content)
                elif waiting:
                    connection.send(waiting.pop())
                else:
                    del busy[connection]
    finally:
        for process in processes:
            process.kill()  # also those that are done: TensorFlow takes seconds to leave of itself
            process.join()


def _received(connection: Connection, process: SpawnProcess) -> tuple[str, Any]:
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise WorkerError(
            f"a worker process is gone (exit code {process.exitcode}); with -9 it was killed, as happens "
            "where memory runs out"
        ) from error
    if kind == "refused":
        raise InputError(content)
    if kind == "failed":
        raise WorkerError(f"a worker process failed:\n{content}")
    return kind, content


def _serve(start: Callable[[], Work], connection: Connection) -> None:
    """What a process runs: a job after the other, until no more come."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C reaches all; the first process ends the rest
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = start()
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            work(job, lambda content: connection.send(("report", content)))
            connection.send((_DONE, None))
    except InputError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def _end_with_parent() -> None:
    """A worker whose parent was killed must write no more: the next command may be at it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
