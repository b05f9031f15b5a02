"""A process for work that may hang or eat memory: it is killed and started anew, and the caller goes on."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import threading
import time
from typing import Any

from nano3.installation import module_command
from nano3.rl.environments.base import EnvironmentFaultError

START_SECONDS = 120.0
"""For imports, some of which take long on a busy machine."""


class Worker:
    """Answers one JSON value at a time by a function of `environments.worker.work`, in a process of its own."""

    def __init__(self, work: str, seconds: float = 5.0, memory: int = 2 << 30) -> None:
        """Nothing is started yet.

        Args:
            work: name of the function.
            seconds: for an answer.
            memory: bytes of address space.
        """
        self._work, self._seconds, self._memory = work, seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115

    def ask(self, question: Any) -> Any:
        """The answer; None where there is none in time, or the process died of the question.

        Raises:
            EnvironmentFaultError: the process does not start.
        """
        with self._lock:
            process = self._started()
            answer = self._exchange(process, question, self._seconds)
            if answer is None:
                self._kill()
            return None if answer is None else answer[0]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def __del__(self) -> None:
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            pipe = subprocess.PIPE
            command = [*module_command("nano3.rl.environments.worker.work"), self._work, str(self._memory)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._errors, bufsize=0, env=environment
            )
            if self._exchange(self._process, None, START_SECONDS) is None:
                said = self._last_words()
                raise EnvironmentFaultError("worker", f"the process for {self._work} does not start: {said}")
        return self._process

    def _last_words(self) -> str:
        self._kill()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"

    def _exchange(self, process: subprocess.Popen[bytes], question: Any, seconds: float) -> list[Any] | None:
        """[answer] of one line sent and one read; None where none comes."""
        assert process.stdin is not None
        assert process.stdout is not None
        end = time.monotonic() + seconds
        try:
            process.stdin.write((json.dumps(question) + "\n").encode())
        except OSError:
            return None
        line = b""
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, 1000 * (end - time.monotonic()))):
                return None
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return None
            line += part
        return [json.loads(line)]

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
