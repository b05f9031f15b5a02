"""Which display a run gets."""

from __future__ import annotations

import sys

from nano3.train.tracking.progress import Lines, Progress, Silent


def make_progress(is_main: bool) -> Progress:
    """Live on a terminal, lines elsewhere, nothing on ranks other than the first."""
    if not is_main:
        return Silent()
    if not sys.stderr.isatty():
        return Lines()
    from nano3.train.tracking.live import Live

    return Live()
