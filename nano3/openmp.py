"""How long PyTorch's idle OpenMP threads hold a core.

The threads of a parallel piece of work wait for each other by turning in a loop. With GNU's library, which PyTorch's
Linux builds use, that goes on for 300,000 turns (10 ms and more) before a thread sleeps. Alone on a machine it costs
nothing; beside other busy processes each wait takes a core from the thread that is waited for, and a training step or
a decoding loop becomes several times slower. Two remedies:

- GOMP_SPINCOUNT, which the library reads when torch loads it (`let_idle_threads_sleep`). Processes that this one starts
  inherit it.
- While the system takes cores away from this process, threads sleep almost at once (`watch_cores`). The library does
  so where it manages more threads than there are cores; a sleeping thread more is enough for that.

Who sets GOMP_SPINCOUNT or OMP_WAIT_POLICY has decided: then neither is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

from nano3.cores import usable_cores

SPINS = "10000"
OURS = "NANO3_GOMP_SPINCOUNT"
"""Set beside GOMP_SPINCOUNT where nano3 and not the user chose it; a process that this one starts reads it."""
INTERVAL = 0.5
"""Seconds between two looks at the cores."""
HOLD = 10.0
"""Seconds for which cores count as shared after a look that found them so: one thread may then be left alone where
several would not be."""
LEAST_WORK = 0.05
"""CPU seconds below which a look says nothing."""
MANY, FEW = 50.0, 15.0
"""Forced switches a CPU second that begin and end the second remedy. A core that others want too is taken away every
few milliseconds; whoever is alone keeps it but for the system's own work."""
MOST_SLEEPERS = 16
"""Threads that the second remedy may take. More are needed only where torch uses few of many cores, and then other
cores are free."""


def let_idle_threads_sleep() -> None:
    """Set GOMP_SPINCOUNT, for this process if torch is not loaded yet and for those that it starts."""
    if not _user_decides():
        os.environ["GOMP_SPINCOUNT"] = os.environ[OURS] = SPINS


def cores_shared() -> bool:
    """Whether other processes used the cores lately, as `watch_cores` found it: small work then goes faster on one
    thread than on several, which wait for each other's turn."""
    return _WATCH.shared


def watch_cores() -> None:
    """Look, at most twice a second, whether other processes use the cores. Called at each step of any work."""
    _WATCH.look()


class CoreWatch:
    """Lets waiting threads sleep early while the system forces this process off its cores."""

    def __init__(self, usage: Callable[[], tuple[int, float]], clock: Callable[[], float] = time.monotonic) -> None:
        """Watch counters of forced switches and of CPU seconds, both of all threads."""
        self._usage, self._clock = usage, clock
        self._lock = threading.Lock()
        self._next, self._last = clock(), usage()
        self._sleepers: _Sleepers | None = None
        self._shared_until = self._next

    @property
    def shared(self) -> bool:
        """Whether the cores were shared at a look of the last `HOLD` seconds."""
        return self._clock() < self._shared_until

    @property
    def sleeping_early(self) -> bool:
        """Whether the cores were shared at the last look."""
        return self._sleepers is not None

    def look(self) -> None:
        """Count again if it is time."""
        now = self._clock()
        if now < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            self._next = now + INTERVAL
            switches, seconds = (new - old for new, old in zip(self._usage(), self._last, strict=True))
            if seconds >= LEAST_WORK:
                self._last = self._last[0] + int(switches), self._last[1] + seconds
                self._decide(switches / seconds, now)
        finally:
            self._lock.release()

    def _decide(self, rate: float, now: float) -> None:
        if rate > MANY and not _user_decides():
            self._shared_until = now + HOLD
        if self._sleepers is None and rate > MANY and not _user_decides():
            self._sleepers = _Sleepers.start()
        elif self._sleepers is not None and rate < FEW:
            self._sleepers.end()
            self._sleepers = None


class _Sleepers:
    """A thread with an OpenMP team of its own that sleeps: so the library manages more threads than there are cores."""

    def __init__(self, libraries: list[ctypes.CDLL], size: int) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._hold, args=(libraries, size), name="nano3-openmp-sleepers", daemon=True
        )
        self._thread.start()

    @classmethod
    def start(cls) -> _Sleepers | None:
        """None where there is nothing to do: another OpenMP library, or a single thread, which waits for nobody."""
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 1
        size = max(2, usable_cores() - threads + 2)
        libraries = _loaded_libraries()
        if (
            threads < 2
            or not libraries
            or size * len(libraries) > MOST_SLEEPERS
            or not _can_start(size * len(libraries))
        ):
            return None
        return cls(libraries, size)

    def end(self) -> None:
        """Send the team home."""
        self._done.set()
        self._thread.join()

    def _hold(self, libraries: list[ctypes.CDLL], size: int) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL): what a team can do without harm
        for library in libraries:
            library.GOMP_parallel(nothing, None, ctypes.c_uint(size), ctypes.c_uint(0))
        self._done.wait()


def _can_start(count: int) -> bool:
    """Whether the system lets this process have so many threads more: GNU's library ends the process where not."""
    done = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait, name="nano3-openmp-probe", daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        return False
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return True


def _loaded_libraries() -> list[ctypes.CDLL]:
    """GNU's OpenMP library as this process has loaded it: once, or once more by another package. One whose file was
    replaced since cannot be reached and is left out."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:
        return []
    found = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            found.append(ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD))
    return found


def _user_decides() -> bool:
    spins = os.environ.get("GOMP_SPINCOUNT")
    # A process that this one starts finds our own setting.
    return "OMP_WAIT_POLICY" in os.environ or (spins is not None and spins != os.environ.get(OURS))


def _usage() -> tuple[int, float]:
    """How often the system took a core from a thread of this process, and the CPU seconds of all its threads."""
    try:
        import resource
    except ImportError:
        return 0, 0.0
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_nivcsw, used.ru_utime + used.ru_stime


_WATCH = CoreWatch(_usage)


def _watch_anew() -> None:
    """In a forked process: its counters begin at 0, and the parent's sleepers and locks are not its own."""
    global _WATCH  # noqa: PLW0603
    _WATCH = CoreWatch(_usage)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch_anew)
