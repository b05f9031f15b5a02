"""The descriptors between a sandbox and the process that watches it; what comes out of one is bounded here."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nano3.sandbox.limits import End, Limits

CHUNK = 1 << 16
OVERHEAD = 2
"""Times the folder's size that an archive of it may have: a file of few bytes takes 1024."""


@dataclass
class Pipe:
    """One way out."""

    read_end: int
    write_end: int
    data: bytearray = field(default_factory=bytearray)

    @classmethod
    def new(cls) -> Pipe:
        """Open it."""
        return cls(*os.pipe())


class Pipes:
    """Input, output and files of one run; closes all it opened."""

    def __init__(self, archive: bytes, stdin: bytes) -> None:
        """Open them, for an archive of files to begin with and what the program reads."""
        self._archive, self.stdin = _in_memory(archive), _in_memory(stdin)
        self.stdout, self.stderr, self.files = Pipe.new(), Pipe.new(), Pipe.new()
        self._open = {self._archive, self.stdin}
        for pipe in (self.stdout, self.stderr, self.files):
            self._open |= {pipe.read_end, pipe.write_end}

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *error: Any) -> None:
        for fd in list(self._open):
            self._close(fd)

    @property
    def handed_on(self) -> list[int]:
        """Those that bubblewrap gets beside the standard three: the archive's, and where the files' is written."""
        return [self._archive, self.files.write_end]

    def close_far_ends(self) -> None:
        """Close this process's copies of what the other now holds."""
        for fd in (self._archive, self.stdin, self.stdout.write_end, self.stderr.write_end, self.files.write_end):
            self._close(fd)

    def read(self, limits: Limits, end: float) -> End:
        """Read until the program has closed all, or has written too much, or its time is over."""
        waiting = {pipe.read_end: pipe for pipe in (self.stdout, self.stderr, self.files)}
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting:
            left = end - time.monotonic()
            if left <= 0:
                return "timeout"
            for fd, _ in poll.poll(1000 * left):
                data = os.read(fd, CHUNK)
                waiting[fd].data += data
                if not data:
                    poll.unregister(fd)
                    del waiting[fd]
            written = len(self.stdout.data) + len(self.stderr.data)
            if written > limits.output_bytes or len(self.files.data) > OVERHEAD * limits.folder_bytes:
                del self.stdout.data[limits.output_bytes :], self.stderr.data[limits.output_bytes :]
                return "output"
        return "exited"

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            with suppress(OSError):
                os.close(fd)


def _in_memory(data: bytes) -> int:
    """A descriptor that reads `data`."""
    fd = os.memfd_create("nano3-sandbox", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
