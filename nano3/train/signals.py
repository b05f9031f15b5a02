"""SIGTERM and Ctrl-C: finish the step, save, leave."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 0.5
"""torchrun passes on a Ctrl-C that the terminal has sent to its processes too: within this time it is the same one."""


_open: list[StopRequest] = []


def stop_requested() -> bool:
    """Whether a signal has asked the run in this process to end: what waits for long need not wait any longer."""
    return any(request.requested for request in _open)


class StopRequest:
    """Context manager: the first SIGTERM or Ctrl-C sets `requested`; a second one ends the process at once.

    Outside the main thread signals cannot be caught, and `requested` stays False.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        _open.append(self)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        _open.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for other in STOP_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        message = f"{signal.Signals(number).name}: finishing this step and saving a checkpoint; once more quits at once"
        try:
            self._say(message)
        except RuntimeError:
            # The signal came while a line was being written: a buffered stream does not take another one inside it.
            os.write(2, f"{message}\n".encode())
        time.sleep(ECHO_SECONDS)
        for other in STOP_SIGNALS:
            signal.signal(other, signal.SIG_DFL)
