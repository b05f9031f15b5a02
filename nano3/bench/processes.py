"""The processes of a measurement, seen from the one that asks: start, one question at a time, a limit, an end."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError
from nano3.installation import module_command

WORKER = "nano3.bench.worker"
"""The module whose process a side is; nano3's own side may have another that calls its `main`."""


class SideError(Exception):
    """A side did not give a result; the message says why, in one line."""


class Worker:
    """One `nano3.bench.worker`. Not alive any more after a SideError."""

    def __init__(self, job: Job, limit: float | None, module: str = WORKER) -> None:
        """Start it; `ready` waits until its model is loaded.

        Args:
            job: what it is to do.
            limit: seconds for loading and for each answer; None: as long as it takes.
            module: what the process runs.
        """
        self.job, self.limit = job, limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
        self._process = subprocess.Popen(
            module_command(module),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0, env=environment,
        )  # fmt: skip
        self._write(job.as_dict())

    def ready(self) -> dict[str, Any]:
        """What the side says about itself. Raises SideError or, for a wrong input, UserError."""
        return self._read()["about"]

    def fits(self, case: Case) -> dict[str, int]:
        """How many requests of a case fit in memory. Raises as `ready`."""
        self._write({"do": "fits", "case": asdict(case)})
        return self._read()

    def run(self, case: Case) -> dict[str, Any]:
        """One timed run. Raises as `ready`."""
        self._write({"do": "run", "case": asdict(case)})
        return self._read()

    def profile(self, case: Case) -> dict[str, Any]:
        """Times by op of one run. Raises as `ready`."""
        self._write({"do": "profile", "case": asdict(case)})
        return self._read()["profile"]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # A process that has ended is noticed, and its end told, where its answer is read.
        with suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(message) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        message = json.loads(self._line())
        if "error" not in message:
            return message
        raise UserError(message["error"]) if message["user"] else SideError(message["error"])

    def _line(self) -> bytes:
        """The next line; the pipe holds one at a time at most."""
        assert self._process.stdout is not None
        end = None if self.limit is None else time.monotonic() + self.limit
        line = b""
        while not line.endswith(b"\n"):
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                raise SideError(f"did not finish in {self.limit:g} s")
            part = self._process.stdout.read(1 << 16)
            if not part:
                raise self._ended()
            line += part
        return line

    def _ended(self) -> SideError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return SideError(f"ended with code {code}" + (f": {lines[-1]}" if lines else ""))
