"""Charts of a run while it goes on, drawn by a process of its own, which training neither waits for nor fails by."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from nano3.installation import module_command

SECONDS = 60.0
"""Least time between two drawings."""


class Redraw:
    """Draws RUN/charts from RUN/metrics.jsonl now and then.

    Args:
        metrics: metrics.jsonl.
        folder: where the charts go.
        shown: metric of loss.png.
        seconds: least time between two drawings, and before the first.
    """

    def __init__(self, metrics: Path, folder: Path, shown: str, seconds: float = SECONDS) -> None:
        self._command = [*module_command("nano3.train.tracking.charts"), str(metrics), str(folder), shown]
        self._seconds, self._last = seconds, time.monotonic()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def poke(self) -> None:
        """Begin a drawing, unless one is under way or began a moment ago. Returns at once; nothing is raised."""
        now = time.monotonic()
        if now - self._last < self._seconds or (self._process is not None and self._process.poll() is None):
            return
        self._last = now
        quiet = subprocess.DEVNULL
        # One thread, and none of the run's ranks: drawing takes what is left of the processors.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                self._command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, start_new_session=True
            )
        except OSError:
            self._process = None

    def wait(self) -> None:
        """Wait for a drawing that is under way."""
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End a drawing that is under way: whoever closes draws the last one."""
        if self._process is not None:
            self._process.kill()
            self.wait()
            for partial in self._folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
