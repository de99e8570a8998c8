"""Says where a run hangs, and can end it so that a supervisor starts it again."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 1


class Watchdog:
    """As a context, watches from a thread of its own that the loop goes on to something new.

    seconds: how long the same thing may take; None watches nothing. It must be longer than the longest
        evaluation, save and compilation.
    ends: whether the process is ended then, with code 1, and not only its stacks printed.
    """

    def __init__(
        self, seconds: float | None = None, *, ends: bool = False, exit: Callable[[int], object] = os._exit
    ):
        self._seconds = seconds
        self._ends = ends
        self._exit = exit
        self._doing, self._since = "the start", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._since = time.monotonic()
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._seconds is not None:
            self._thread.join()

    def doing(self, what: str) -> None:
        """The loop now waits for this."""
        self._doing, self._since = what, time.monotonic()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            waited = time.monotonic() - self._since
            if waited >= self._seconds:
                self._report(waited)
                self._since = time.monotonic()  # once for every such time, and not every second

    def _report(self, waited: float) -> None:
        late = threading.Timer(10.0, self._exit, [EXIT_CODE])  # where nobody reads, printing waits for ever
        late.daemon = True
        if self._ends:
            late.start()
        try:
            print(
                f"pretrain: for {waited:.0f} seconds the run has been waiting for {self._doing}"
                f"{'; ending it' if self._ends else ''}. What every thread does:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        finally:
            late.cancel()
            if self._ends:
                self._exit(EXIT_CODE)
