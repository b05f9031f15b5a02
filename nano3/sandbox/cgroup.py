"""Control groups of a sandbox, version 1 and 2, where this process may make any: bounds for all its processes together.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nano3.sandbox.limits import Limits

PROC = Path("/proc/self")
SECONDS_TO_END = 5.0
"""In which the kernel removes killed processes."""


@dataclass(frozen=True)
class Groups:
    """The cgroups of one sandbox."""

    folders: list[Path] = field(default_factory=list)
    holds_processes: bool = False
    """Whether they bound the number of processes."""
    holds_memory: bool = False

    @property
    def entries(self) -> list[str]:
        """Files to which a process writes its id to enter."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def kill(self) -> None:
        """Kill all processes in them, those too that left their process group."""
        for folder in self.folders:
            with suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text("utf-8").split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)


@contextmanager
def groups_for(limits: Limits, proc: Path = PROC) -> Iterator[Groups]:
    """New cgroups with the bounds of `limits`, as many as this process may make: perhaps none.

    `proc` is where the kernel tells of this process (cgroup, mountinfo).
    """
    groups = _make(limits, proc)
    try:
        yield groups
    finally:
        for folder in groups.folders:
            _remove(folder, groups)


def _make(limits: Limits, proc: Path) -> Groups:
    bounds = {
        "pids": [("pids.max", limits.processes)],
        "memory": [("memory.max", limits.memory), ("memory.limit_in_bytes", limits.memory), ("memory.swap.max", 0)],
    }
    made: dict[Path, Path] = {}
    held = set()
    for controller, values in bounds.items():
        for parent in _parents(controller, proc):
            folder = made.get(parent) or _new_folder(parent)
            if folder is None:
                continue
            made[parent] = folder
            if _bound(folder, values):
                held.add(controller)
                break
    return Groups(list(made.values()), "pids" in held, "memory" in held)


def _bound(folder: Path, values: list[tuple[str, int]]) -> bool:
    """Write those of the values that the folder has a file for; whether any was taken."""
    taken = False
    for name, value in values:
        with suppress(OSError):
            if (folder / name).exists():
                (folder / name).write_text(str(value), "utf-8")
                taken = True
    return taken


def _new_folder(parent: Path) -> Path | None:
    folder = parent / f"nano3-sandbox-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError:
        return None
    return folder


def _remove(folder: Path, groups: Groups) -> None:
    """Remove a folder once its processes are gone."""
    end = time.monotonic() + SECONDS_TO_END
    while True:
        groups.kill()
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        else:
            return


def _parents(controller: str, proc: Path) -> list[Path]:
    """Folders in which a cgroup with this controller may be made: in version 1 this process's own; in version 2 that
    or the one above it, since a cgroup with processes passes no controllers on."""
    own = _own(proc)
    if controller in own:
        return [own[controller]]
    if "" not in own:
        return []
    return [place for place in (own[""], own[""].parent) if controller in _passed_on(place)]


def _passed_on(folder: Path) -> list[str]:
    try:
        return (folder / "cgroup.subtree_control").read_text("utf-8").split()
    except OSError:
        return []


def _own(proc: Path) -> dict[str, Path]:
    """This process's cgroup by version 1 controller; under "" that of version 2."""
    mounts = _mounts(proc)
    found = {}
    try:
        lines = (proc / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounts:
                root, mount = mounts[name]
                inside = "" if root == "/" else root
                found[name] = mount / path.removeprefix(inside).lstrip("/")
    return found


def _mounts(proc: Path) -> dict[str, tuple[str, Path]]:
    """(root, place) of the mounted hierarchies by version 1 controller; under "" that of version 2."""
    found: dict[str, tuple[str, Path]] = {}
    try:
        lines = (proc / "mountinfo").read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    for line in lines:
        before, _, after = line.partition(" - ")
        # Spaces and the like stand there as octal numbers.
        root, place = (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), t) for t in before.split()[3:5])
        kind, _, options = after.split()[:3]
        names = options.split(",") if kind == "cgroup" else [""] if kind == "cgroup2" else []
        for name in names:
            found.setdefault(name, (root, Path(place)))
    return found
