"""Unprivileged user ids for sandboxes: one each, since the kernel counts processes by user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nano3.sandbox.limits import SandboxError

UIDS = range(60706, 61184)
"""Given out to nobody: not by Debian, nor by systemd for users or services."""


def is_root() -> bool:
    """Whether this process can take another user's id on."""
    return os.geteuid() == 0


@contextmanager
def leased_uid() -> Iterator[int]:
    """A user id that no process runs under and that no other sandbox on this machine takes meanwhile.

    Raises:
        SandboxError: all are taken.
    """
    import fcntl  # where there are no Unix modules the environments still import

    folder, running = _folder(), _running()
    for uid in UIDS:
        if uid in running:
            continue
        descriptor = os.open(folder / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield uid
            return
        finally:
            os.close(descriptor)
    raise SandboxError(f"sandbox: all {len(UIDS)} user ids from {UIDS.start} are taken; run fewer sandboxes at a time")


def _folder() -> Path:
    """Root's own, where the locks are."""
    run = Path("/run")
    folder = (run if run.is_dir() and os.access(run, os.W_OK) else Path(tempfile.gettempdir())) / "nano3-sandbox"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise SandboxError(f"sandbox: {folder} belongs to another user; remove it")
    return folder


def _running() -> set[int]:
    """User ids with a process."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found.add(entry.stat().st_uid)
            except OSError:  # it has ended
                continue
    return found
