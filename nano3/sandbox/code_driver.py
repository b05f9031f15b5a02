"""Runs a program once for each test, inside the sandbox; prints a digest of what each run put out.

A script of its own, with the standard library alone and for Python 3.8 and newer: the sandbox may have another Python.
The program can reach this process, but does not know what it would have to print.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

with suppress(ModuleNotFoundError):  # where it is missing this file is imported all the same, never run
    import resource

CALL = r"""
import json, sys
names = {'__name__': 'solution'}
exec(compile(open('solution.py').read(), 'solution.py', 'exec'), names)
print('\n' + json.dumps(eval(sys.argv[1], names)))
"""
TOO_SLOW, UNREADABLE = 124, 125
"""In place of a program's exit status."""


def main() -> None:
    """Reads [CPU seconds a test, CPU seconds of all, wall seconds for each of them, tests].

    Prints a line for each test, [exit status, digest], up to the first that fails by itself.
    """
    seconds, seconds_of_all, wall, tests = json.load(sys.stdin)
    for test in tests:
        status, digest = run(test, min(seconds, seconds_of_all - _used()), wall)
        print(json.dumps([status, digest]), flush=True)
        if status:
            break


def run(test: dict[str, Any], seconds: float, wall: float) -> tuple[int, str]:
    """Exit status of the program and digest of its output.

    Args:
        test: with "call", an expression, or with what the program reads, "stdin".
        seconds: CPU time of its processes.
        wall: times as long it may take by the clock: it shares the machine with others.
    """
    own = ["-c", CALL, test["call"]] if "call" in test else ["solution.py"]
    before = _used()
    with tempfile.TemporaryFile() as output:  # the limit of a file's size bounds it
        status = _run([sys.executable, "-s", *own], test.get("stdin", ""), output, seconds, wall)
        if _used() - before > seconds:
            return TOO_SLOW, ""
        output.seek(0)
        try:
            with open(output.fileno(), encoding="utf-8", closefd=False) as text:
                return status, digest_of_value(last_line(text)) if "call" in test else digest_of_lines(text)
        except (ValueError, RecursionError, MemoryError):
            return status or UNREADABLE, ""


def _run(command: list[str], stdin: str, output: Any, seconds: float, wall: float) -> int:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    _bound_cpu(process.pid, math.ceil(seconds))
    try:
        process.communicate(stdin, timeout=wall * max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return TOO_SLOW
    except UnicodeError:  # in what it should read
        return UNREADABLE
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def _bound_cpu(pid: int, seconds: int) -> None:
    """End a process that takes longer: more than a second later, so that what it used shows that it did."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
    most = max(seconds, 0) + 2
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.prlimit(pid, resource.RLIMIT_CPU, (most, most))


def _used() -> float:
    """CPU seconds of all processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def digest_of_lines(lines: Iterable[str]) -> str:
    """Of a text, without white space at the ends of lines and empty lines at its end; `lines` may have line breaks."""
    digest, empty = hashlib.sha256(), 0
    for line in lines:
        line = line.rstrip()
        if line:
            digest.update(b"\n" * empty + line.encode("utf-8", "surrogatepass") + b"\n")
            empty = 0
        else:
            empty += 1
    return digest.hexdigest()


def digest_of_value(text: str) -> str:
    """Of a value as JSON text; equal for values that are equal and of the same types: true is not 1, nor is 1.0.

    Raises:
        ValueError: it is no JSON, or has a number that is none in JSON.
    """
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True, allow_nan=False).encode()).hexdigest()


def last_line(lines: Iterable[str]) -> str:
    """The last that is not empty."""
    last = ""
    for line in lines:
        last = line if line.strip() else last
    return last


if __name__ == "__main__":
    main()
