"""Progress of a long prompt, on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano3.engine.protocol import GenerationEngine

LONG_PROMPT = 4096
"""Shorter ones are read before anyone wonders."""


class PrefillProgress:
    """A line on stderr that says how much of a long prompt has been read; nothing where stderr is no terminal."""

    def __init__(self, engine: GenerationEngine, request_id: str) -> None:
        self._engine = engine
        self._request_id = request_id
        self._active = sys.stderr.isatty()
        self._shown = False
        self._start = time.perf_counter()

    def __enter__(self) -> PrefillProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self) -> None:
        """Show how far it is, if the prompt is long and not read yet."""
        if not self._active:
            return
        done, total = self._engine.progress(self._request_id) or (0, 0)
        if total < LONG_PROMPT or done >= total:
            return
        speed = done / max(time.perf_counter() - self._start, 1e-9)
        sys.stderr.write(f"\r\x1b[Kreading the prompt: {done:,} of {total:,} tokens ({speed:,.0f}/s)")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        """Take the line away; the first token has come, or it is over."""
        self._active = False
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
