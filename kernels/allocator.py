"""Process-wide memory settings that make tensor work on CPU faster."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C allocator reuse freed memory of any size instead of returning it to the system.

    Large fresh tensors otherwise cost a page fault every 4 KiB: filling 32 MB took 25 ms fresh and 4 ms reused on the
    machine this was written on. Call once at the start of a long CPU run; the process's memory then stays at its peak.

    Returns:
        False where the C library has no such setting (anything but glibc), and nothing changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
