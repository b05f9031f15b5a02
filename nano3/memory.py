"""Main memory that is free, without PyTorch: dry runs ask too."""

from __future__ import annotations

from pathlib import Path


def main_memory_free() -> int:
    """Bytes of main memory that are free, within the limit of a container."""
    import psutil

    return min(psutil.virtual_memory().available, container_free())


def container_free(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left below the memory limit of this process's control group (version 2); 2**63 where there is none."""
    try:
        limit, used = ((root / f"memory.{name}").read_text("utf-8").strip() for name in ("max", "current"))
        rows = (line.split() for line in (root / "memory.stat").read_text("utf-8").splitlines())
        # Pages of files count as used until others need the room.
        files = sum(int(row[1]) for row in rows if row[0] in ("active_file", "inactive_file"))
        return max(0, int(limit) - int(used) + files)
    except (OSError, ValueError, IndexError):  # no such group, or "max": no limit
        return 1 << 63
