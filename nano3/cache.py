"""Where nano3 keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(cache_dir: str = "") -> Path:
    """Folder of prepared data: `cache_dir`, else $XDG_CACHE_HOME/nano3, else ~/.cache/nano3."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nano3"
