"""The processor cores of this machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use; where the system cannot tell (macOS, Windows), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
