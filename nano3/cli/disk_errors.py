"""What a disk that is full, or that cannot be written, looks like in the errors of Python and of its libraries."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

WORDS = {
    errno.ENOSPC: "the disk is full: free space on it, or write to another place",
    errno.EDQUOT: "your quota of the disk is used up: free space, or write to another place",
    errno.EFBIG: "the file has become larger than is allowed here (ulimit -f, or the file system's own limit)",
    errno.EROFS: "the disk can only be read: write to another place",
    errno.EIO: "the disk reports an input/output error: look at the system's log, or use another disk",
}
_NUMBER = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)
"""How Rust (safetensors, tokenizers) and Arrow name the system's error in the text of theirs."""
_SQLITE_FULL = "database or disk is full"


def disk_error(error: BaseException) -> str:
    """What is wrong with the disk, as one line with the file where the error names it; empty: it is another error.

    An error that came of one of a disk counts as that, also one from a worker process.
    """
    for one in _chain(error):
        number = _errno(one)
        if number in WORDS:
            file = getattr(one, "filename", None)
            return f"{os.fsdecode(file) if file else 'cannot write'}: {WORDS[number]}"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _errno(error: BaseException) -> int:
    """The operating system's number of an error; 0: it has none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if _SQLITE_FULL in str(error):
        return errno.ENOSPC
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else 0
