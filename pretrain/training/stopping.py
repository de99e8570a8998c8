"""Asked to stop: by Ctrl-C, or by SIGTERM before a machine is taken away."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

MESSAGE = b"\npretrain: saving after this step, then stopping; a second signal ends the run at once.\n"


class Stop:
    """As a context, takes SIGINT and SIGTERM; called at every turn of a run, says whether to save and leave.

    Several processes must agree on the turn, or those that go on wait for the others for ever. There, JAX's
    preemption service (`jax.distributed` starts it) looks once a second whether SIGTERM came to any process,
    and names the number of a turn to all. Ctrl-C is passed on to it. It takes no notice of a second signal,
    so from that turn on signals have their own meaning again.
    """

    def __init__(self) -> None:
        self._asked = False
        self._turns = 0
        self._before: dict[int, signal._HANDLER] = {}
        self._pipe: int | None = None

    def __enter__(self) -> "Stop":
        # Before any signal is taken: JAX starts here, under a lock that a handler must not wait for.
        self._several, self._speaks = jax.process_count() > 1, jax.process_index() == 0
        self._take(signal.SIGINT)
        if not self._several:
            self._take(signal.SIGTERM)
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe)  # which ends the thread

    def __call__(self, _step: int) -> bool:
        self._turns += 1
        if self._several and not self._asked and multihost_utils.reached_preemption_sync_point(self._turns):
            self._heard(signal.SIGINT, signal.SIGTERM)
        return self._asked

    def _take(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._handle)

    def _listen(self) -> None:
        """Python runs a handler between its own instructions only: while XLA works, a thread must count."""
        readable, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._count, args=(readable,), daemon=True).start()

    def _count(self, readable: int) -> None:
        """Ends the process at a second signal, if the first one was not handled before it."""
        heard = 0
        while number := os.read(readable, 1):
            heard += number[0] in self._before
            if heard == 2:
                os._exit(128 + number[0])
        os.close(readable)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._several:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._heard(*self._before)

    def _heard(self, *numbers: int) -> None:
        """From here on, any of these signals ends the process."""
        self._asked = True
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if self._speaks:
            os.write(2, MESSAGE)
