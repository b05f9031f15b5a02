"""Locks on open files, which the system frees when the process ends, however it ends."""

from __future__ import annotations

from filelock import lock_descriptor

LOOK_SECONDS = 0.05
"""Between two tries of `wait_for_lock`."""


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, unless another process has it; it is held until the file is closed.

    Raises:
        OSError: the file system or the machine has no locks.
    """
    return lock_descriptor(descriptor, blocking=False)


def wait_for_lock(descriptor: int) -> None:
    """Take the lock of an open file as soon as nobody else has it. Raises OSError as `try_lock` does."""
    lock_descriptor(descriptor, poll_interval=LOOK_SECONDS)
