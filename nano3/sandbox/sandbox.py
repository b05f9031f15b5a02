"""Runs one program after the other in bubblewrap, once it has been seen that this machine holds it in."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nano3.sandbox.archive import Entry, pack, unpack
from nano3.sandbox.bubblewrap import DONE, READY, command, find_bwrap, find_python
from nano3.sandbox.cgroup import Groups, groups_for
from nano3.sandbox.limits import End, Finished, Limits, SandboxError
from nano3.sandbox.pipes import Pipes
from nano3.sandbox.uids import is_root, leased_uid

LAUNCHER = Path(__file__).with_name("launch.py")
"""Run as a script, and never imported: it needs Unix modules."""
PROBE_LIMIT, PROBE_STARTS = 6, 16
"""Processes that the probe may have, and how many it tries to start: few, should nothing hold them."""
PROBE = f"n=0; while [ $n -lt {PROBE_STARTS} ]; do sleep 30 & n=$((n+1)); done; echo started $n"


@dataclass(frozen=True)
class Guard:
    """What bounds the number of processes."""

    own_uid: bool
    """Each sandbox is another unprivileged user: RLIMIT_NPROC does not hold root."""
    cgroups: bool


class Sandbox:
    """Runs programs. Making one proves, with a few processes, that the machine bounds theirs; else it refuses.

    Several may run at the same time, in threads and in processes.
    """

    def __init__(self, limits: Limits | None = None, readable: Sequence[str | Path] = ()) -> None:
        """Look at this machine.

        Args:
            limits: of each run, unless it has its own.
            readable: files and folders that programs may read beside the system's; all users must be able to.

        Raises:
            SandboxError: bubblewrap is missing, too old or not allowed here, or nothing bounds the processes.
        """
        self.limits = limits or Limits()
        self.guard = _proven_guard()
        self._readable = [Path(path) for path in readable]

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes | Entry] | None = None,
        stdin: bytes = b"",
        keep_files: bool = False,
        limits: Limits | None = None,
    ) -> Finished:
        """Run one program to its end.

        Args:
            argv: program and arguments, as it finds them inside; it starts in the working folder.
            files: path to content or to an entry, in that folder at the start.
            stdin: for it to read.
            keep_files: return what the folder holds at the end.
            limits: of this run; None: those of the sandbox.

        Raises:
            SandboxError: the sandbox could not be set up.
        """
        limits = limits or self.limits
        return _run(self.guard, argv, limits, self._readable, files or {}, stdin, keep_files)

    def run_python(self, source: str, **options: Any) -> Finished:
        """Run a Python program without a user's packages and folders; `options` are those of `run`."""
        python = find_python(self.guard.own_uid)
        prefix = Path(python).parents[1]
        inside = prefix.is_relative_to("/usr")
        own = self if inside else Sandbox(self.limits, [*self._readable, prefix])
        files = {**(options.pop("files", None) or {}), ".program.py": source.encode(errors="replace")}
        # Not -I: it would leave out PYTHONHASHSEED. The variable is -P, for Pythons that do not know that.
        return own.run(["/usr/bin/env", "PYTHONSAFEPATH=1", python, "-s", ".program.py"], files=files, **options)


@functools.cache
def _proven_guard() -> Guard:
    """The first guard under which a bounded probe is held.

    Raises:
        SandboxError: none is; with what each came to.
    """
    find_bwrap()
    ways = [Guard(True, True), Guard(True, False)] if is_root() else []
    found = {}
    for guard in [*ways, Guard(False, True), Guard(False, False)]:
        try:
            problem = _probe(guard)
        except SandboxError as error:
            problem = str(error).removeprefix("sandbox: ")
        if problem is None:
            return guard
        found[problem] = None
    raise SandboxError(
        f"sandbox: nothing on this machine bounds the processes of a program ({'; '.join(found)}), so none is run: it "
        "needs an unprivileged user id to change to, a writable pids cgroup, or to be started by an ordinary user"
    )


def _probe(guard: Guard) -> str | None:
    """None where the guard holds, else what happened."""
    limits = replace(Limits(), seconds=10.0, processes=PROBE_LIMIT)
    done = _run(guard, ["/bin/sh", "-c", PROBE], limits, [], {}, b"", False)
    # A shell that cannot fork says so, and gives up or tries again for longer than this takes.
    if b"started" not in done.stdout and b"fork" in done.stderr:
        return None
    return f"{PROBE_STARTS} processes started under a limit of {PROBE_LIMIT}"


def _run(
    guard: Guard,
    argv: Sequence[str],
    limits: Limits,
    readable: Sequence[Path],
    files: Mapping[str, bytes | Entry],
    stdin: bytes,
    keep_files: bool,
) -> Finished:
    uids = leased_uid() if guard.own_uid else nullcontext()
    with uids as uid, groups_for(limits) if guard.cgroups else nullcontext(Groups()) as groups:
        if guard.cgroups and not groups.holds_processes:
            raise SandboxError("sandbox: no pids cgroup can be made")
        whole = command(find_bwrap_once(), argv, limits, readable, keep_files=keep_files)
        started = time.monotonic()
        with _launched(whole, uid, limits, groups, pack(files), stdin) as (process, pipes):
            end: End = pipes.read(limits, started + limits.seconds)
            if end != "exited":
                _kill(process, groups)
            code = _exit_status(process, groups, started + limits.seconds)
        seconds = time.monotonic() - started
    if code is None:
        end = "timeout"
    return _finished(end, code, pipes, seconds, limits if keep_files else None)


find_bwrap_once = functools.cache(find_bwrap)


@contextmanager
def _launched(
    whole: list[str], uid: int | None, limits: Limits, groups: Groups, archive: bytes, stdin: bytes
) -> Iterator[tuple[subprocess.Popen, Pipes]]:
    """The process and its pipes; all is killed when the block is left."""
    with Pipes(archive, stdin) as pipes:
        config = {
            "argv": whole, "uid": uid, "cgroups": groups.entries, "fds": pipes.handed_on,
            "limits": {
                "CPU": limits.cpu_seconds, "AS": limits.memory, "FSIZE": limits.file_bytes, "CORE": 0, "NOFILE": 256,
            },
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(config)],
            stdin=pipes.stdin, stdout=pipes.stdout.write_end, stderr=pipes.stderr.write_end,
            pass_fds=pipes.handed_on, start_new_session=True, cwd="/",
        )  # fmt: skip
        try:
            pipes.close_far_ends()
            yield process, pipes
        finally:
            _kill(process, groups)
            process.wait()


def _kill(process: subprocess.Popen, groups: Groups) -> None:
    """Kill bubblewrap's process group, and with it all in its process namespace."""
    if process.poll() is None:  # else its id may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    groups.kill()


def _exit_status(process: subprocess.Popen, groups: Groups, end: float) -> int | None:
    """Its exit status once it has ended; None where it does not in time and was killed."""
    try:
        return process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(process, groups)
        process.wait()
        return None


def _finished(end: End, code: int | None, pipes: Pipes, seconds: float, kept: Limits | None) -> Finished:
    """What became of it; `kept`: bounds of the files that are kept, None where none are."""
    stdout, stderr = bytes(pipes.stdout.data), bytes(pipes.stderr.data)
    if end != "exited" or code is None:
        return Finished(end, 124, stdout, stderr, seconds)
    code = code if code >= 0 else 128 - code
    if not pipes.files.data.startswith(READY):
        said = stderr.decode(errors="replace").strip().splitlines() or [f"exit status {code}"]
        raise SandboxError(f"sandbox: it could not be set up: {said[-1]}")
    if kept is None:
        return Finished(end, code, stdout, stderr, seconds)
    if not pipes.files.data.endswith(DONE):
        return Finished(end, code, stdout, stderr, seconds, files_error="a file or folder cannot be read")
    try:
        entries = unpack(bytes(pipes.files.data[len(READY) : -len(DONE)]), kept.folder_bytes, kept.file_bytes)
        return Finished(end, code, stdout, stderr, seconds, entries)
    except ValueError as error:
        return Finished(end, code, stdout, stderr, seconds, files_error=str(error))
