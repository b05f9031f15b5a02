"""Programs that look at what anybody may have written: they end in time, and take bounded memory and disk."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MOST_MEMORY = 2 << 30
MOST_OUTPUT = 64 << 20
"""Bytes of any file that the program writes, its output among them."""
_LIMIT = 'ulimit -c 0; ulimit -v "$1"; ulimit -f "$2"; ulimit -t "$3"; shift 3; exec "$@"'
"""A shell sets the limits: Python may not between fork and exec, where threads run. In KiB, 512 bytes and seconds."""


def run_limited(
    command: Sequence[str],
    folder: str | Path,
    timeout: float,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Exit status and output of a program; at the end of the time it is killed with all that it started.

    Args:
        command: program and arguments.
        folder: it runs there.
        timeout: seconds; each of its processes may also compute for about as long.
        given: what it reads.
        environment: instead of this process's.

    Raises:
        subprocess.TimeoutExpired: it did not end.
        OSError: it could not be started.
    """
    limits = [str(MOST_MEMORY >> 10), str(MOST_OUTPUT // 512), str(math.ceil(timeout) + 1)]
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as output:
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LIMIT, "sh", *limits, *command], cwd=folder, env=environment, stdin=source,
            stdout=output, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return process.returncode, output.read()
