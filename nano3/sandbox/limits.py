"""What a program in the sandbox may use, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from nano3.config.errors import UserError
from nano3.sandbox.archive import Entry, contents

MIB = 1 << 20


class SandboxError(UserError):
    """This machine cannot hold a program in: nothing was run. Says what to do about it."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one run."""

    seconds: float = 10.0
    """From start to end; then all of it is killed."""
    cpu_seconds: int = 10
    """Of one process."""
    memory: int = 512 * MIB
    """Bytes of address space of one process; of all together where a memory cgroup can be made."""
    processes: int = 32
    """Processes and threads at a time."""
    file_bytes: int = 16 * MIB
    """Of one file."""
    folder_bytes: int = 64 * MIB
    """Of the working folder, of /tmp and of /dev/shm, each."""
    output_bytes: int = MIB
    """Of standard output and error together; a program that writes more is killed."""

    def __post_init__(self) -> None:
        for bound in fields(self):
            if not getattr(self, bound.name) > 0:
                raise UserError(f"sandbox: {bound.name} is {getattr(self, bound.name)}; it must be above 0")


End = Literal["exited", "timeout", "output"]
"""By itself or by a signal of the kernel; killed for its time; killed for its output."""


@dataclass(frozen=True)
class Finished:
    """One run."""

    end: End
    code: int
    """Exit status as a shell gives it: 128 + the signal where one ended it; 124 where it was killed for its time or its
    output."""
    stdout: bytes
    stderr: bytes
    seconds: float
    entries: Mapping[str, Entry] = field(default_factory=dict)
    """Path to what the working folder holds afterwards, where it was asked for and the program was not killed."""
    files_error: str = ""
    """Why it could not be read."""

    @property
    def files(self) -> dict[str, bytes]:
        """Path to content of the regular files among the entries."""
        return contents(self.entries)

    @property
    def ok(self) -> bool:
        """It ended by itself with exit status 0."""
        return self.end == "exited" and self.code == 0
