"""First process of a sandbox: enters its cgroups, takes its limits on, gives up its rights, becomes bubblewrap.

A script of its own, since none of this is safe between fork and exec in a process with threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import sys
from typing import Any

FIRST_FD = 3
"""Where bubblewrap finds the descriptors that are handed on, one after the other."""


def main() -> None:
    """Does what the JSON object in the first argument says."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    for path in config["cgroups"]:
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    bwrap = os.open(config["argv"][0], os.O_RDONLY)
    bwrap = fcntl.fcntl(bwrap, fcntl.F_DUPFD_CLOEXEC, 64)
    _place(config["fds"])
    # Of a bubblewrap that only root can reach the descriptor can be executed all the same.
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    for name, value in config["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.execve(bwrap, config["argv"], {"PATH": "/usr/bin:/bin"})


def _place(fds: list[int]) -> None:
    """Moves descriptors to FIRST_FD and after, open across exec. No copy may stay: the program would inherit it."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds]
    for fd in fds:
        os.close(fd)
    for place, fd in enumerate(high, start=FIRST_FD):
        os.dup2(fd, place, inheritable=True)
        os.close(fd)


if __name__ == "__main__":
    main()
