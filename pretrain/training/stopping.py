"""Asked to stop: by Ctrl-C, or by SIGTERM before a machine is taken away."""

import os
import signal
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

    def __enter__(self) -> "Stop":
        self._take(signal.SIGINT)
        if jax.process_count() == 1:
            self._take(signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, _step: int) -> bool:
        self._turns += 1
        several = jax.process_count() > 1
        if several and not self._asked and multihost_utils.reached_preemption_sync_point(self._turns):
            self._heard(signal.SIGINT, signal.SIGTERM)
        return self._asked

    def _take(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if jax.process_count() > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._heard(*self._before)

    def _heard(self, *numbers: int) -> None:
        """From here on, any of these signals ends the process."""
        self._asked = True
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if jax.process_index() == 0:
            os.write(2, MESSAGE)
