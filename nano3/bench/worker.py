"""One side of a measurement in a process of its own: `python -m nano3.bench.worker`.

Reads JSON lines on stdin and answers each with one on stdout. The first is the Job; then `{"do": "run", "case": ...}`
times one run, "profile" profiles one, and "fits" tells how many of its requests fit in memory. A process each keeps
memory, threads and settings of the sides apart.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError


class Side(Protocol):
    """Something that can do the work of a case; nano3's own has `profile(case)` too."""

    def about(self) -> dict[str, Any]:
        """What there is to say about it: types, sizes, versions."""
        ...

    def run(self, case: Case) -> dict[str, Any]:
        """Do the work once; `seconds`, or the ceilings' rates; perhaps `peak_memory` in place of the process's."""
        ...


def open_side(job: Job, ours: Callable[[Job], Side] | None) -> Side:
    """The side that a job names, its model loaded; `ours` in place of nano3's usual one."""
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    if job.side == "nano3":
        from nano3.bench.native import Native

        return (ours or Native)(job)
    if job.side == "ceilings":
        return _ceilings(job)
    from nano3.bench.peers.table import PEERS

    return PEERS[job.side].side(job)


def _ceilings(job: Job) -> Side:
    if job.device == "cpu":
        from nano3.bench.ceilings import Ceilings

        return Ceilings(job)
    from nano3.bench.device.ceilings import DeviceCeilings
    from nano3.engine.launch import find_device

    return DeviceCeilings(find_device(job.device))


def tune() -> None:
    """What the trainer and the server set for a whole process, before the first tensor work."""
    import torch

    from nano3.train.numerics import tune_process

    tune_process(torch.device("cpu"))


def peak_memory() -> int:
    """Most resident bytes of this process so far."""
    # ru_maxrss survives exec and so may be the parent's; the kernel's own mark is of this program alone.
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return _peak_elsewhere()


def _peak_elsewhere() -> int:
    """The same where there is no /proc: macOS counts bytes, other Unix systems KiB, and Windows has its own count."""
    try:
        import resource
    except ImportError:
        import psutil

        used = psutil.Process().memory_info()
        return getattr(used, "peak_wset", used.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def answer(side: Any, command: dict[str, Any]) -> dict[str, Any]:
    """What one command gives."""
    case = Case(**command["case"])
    if command["do"] == "fits":
        return side.fits(case)
    if command["do"] == "profile":
        return {"profile": side.profile(case)}
    found = side.run(case)
    return {"peak_memory": peak_memory(), **found}


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`, or its error in one line."""
    try:
        return work()
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": str(error) if isinstance(error, UserError) else line, "user": isinstance(error, UserError)}


def serve(ours: Callable[[Job], Side] | None = None) -> None:
    """Answer until stdin ends; `ours` is nano3's side where it is another than nano3.bench.native's."""
    # Libraries may print: only this file's answers go to the pipe.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    sides: list[Side] = []

    def start() -> dict[str, Any]:
        job = Job(**json.loads(sys.stdin.readline()))
        if job.side == "nano3":
            tune()
        sides.append(open_side(job, ours))
        return {"about": sides[0].about()}

    say(guarded(start))
    for line in sys.stdin:
        say(guarded(lambda line=line: answer(sides[0], json.loads(line))))


def main() -> None:
    """The process of a side of nano3.bench."""
    serve()


if __name__ == "__main__":
    main()
