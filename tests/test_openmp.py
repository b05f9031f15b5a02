"""Idle OpenMP threads give up their cores, however nano3 is entered; what a user has set stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nano3.openmp import HOLD, INTERVAL, OURS, SPINS, CoreWatch

DECIDING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", OURS)
MAPS = Path("/proc/self/maps")
LIBRARY = (
    next((line.split()[-1] for line in MAPS.read_text().splitlines() if "libgomp" in line), "") if MAPS.exists() else ""
)
LOAD = f"import ctypes; ctypes.CDLL({LIBRARY!r})"
"""As torch does it, without the two seconds that the rest of torch takes."""
pytestmark = pytest.mark.skipif(not LIBRARY, reason="this PyTorch has another OpenMP library than GNU's")


def run(*command: str, **settings: str) -> subprocess.CompletedProcess:
    """Run Python without the settings of this process."""
    environment = {k: v for k, v in os.environ.items() if k not in DECIDING} | settings
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def spins(*command: str, **settings: str) -> list[str]:
    """What the library of each process says when it is loaded."""
    shown = run(*command, OMP_DISPLAY_ENV="verbose", OMP_NUM_THREADS="1", **settings).stderr
    return [line.split("'")[1] for line in shown.splitlines() if "GOMP_SPINCOUNT" in line]


def test_the_library_as_torch_loads_it():
    assert spins("-c", "import nano3, torch") == [SPINS]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_the_library_without_the_rest_of_torch(settings, expected):
    assert spins("-c", f"import nano3; {LOAD}", **settings) == [expected]


def test_the_command_line_under_torchrun():
    launcher, worker = spins("-m", "torch.distributed.run", "--nproc-per-node=1", "-m", "nano3", "info")
    assert (launcher != SPINS, worker) == (True, SPINS)


def test_a_process_that_a_script_starts_has_it_too():
    code = f"{LOAD}; import sys, nano3, subprocess; subprocess.run([sys.executable, '-c', {LOAD!r}], check=True)"
    own, child = spins("-c", code)
    assert (own != SPINS, child) == (True, SPINS)


EFFECT = """
import time, torch
from nano3 import openmp

torch.set_num_threads(2)
x = torch.randn(400, 400)


def used():
    '''CPU seconds of operations with pauses between them, in which waiting threads spin or sleep.'''
    start = time.process_time()
    for _ in range(25):
        x.exp()
        time.sleep(0.02)
    return time.process_time() - start


used()
before = used()
sleepers = openmp._Sleepers.start()
time.sleep(0.3)
during = used()
sleepers.end()
print(during < 0.5 * before or before < 0.02, openmp._WATCH.sleeping_early)
"""


def test_waiting_threads_use_less_of_a_core():
    # As where torch was imported before nano3: the library waits its 300,000 turns.
    assert run("-c", "import torch\n" + EFFECT).stdout == "True False\n"


BEYOND = """
import torch, nano3, os, sys
from nano3 import openmp

torch.set_num_threads(2)
os.sched_getaffinity = lambda pid: set(range(192))
print(openmp._Sleepers.start())
os.sched_getaffinity = lambda pid: {0, 1}
openmp._can_start = lambda count: False
print(openmp._Sleepers.start())
watch, pid = openmp._WATCH, os.fork()
if not pid:
    os._exit(openmp._WATCH is watch)
print(os.waitpid(pid, 0)[1])
"""


def test_what_the_system_would_refuse_is_not_asked_for():
    assert run("-c", BEYOND).stdout == "None\nNone\n0\n"


WATCHED = """
import os, time, torch
from nano3.openmp import INTERVAL, CoreWatch

torch.set_num_threads(2)
torch.randn(400, 400).exp()
switches, used, now = 0, 0.0, 0.0
watch = CoreWatch(lambda: (switches, used), lambda: now)


def look(more, seconds=1.0, later=INTERVAL):
    global switches, used, now
    switches, used, now = switches + more, used + seconds, now + later
    watch.look()
    return watch.sleeping_early


def threads():
    return len(os.listdir("/proc/self/task"))


before = threads()
print(*(look(more) for more in (1, 200, 200, 20, 1, 1)))  # shared from the second to the fourth
print(look(20), look(4, 0.02), look(0, 0.02), look(200, 0.04), threads() > before)  # little work, in sum enough
print(look(0, 1.0, INTERVAL / 5), look(0, 0.0, 60.0))  # not yet; long idle
until = time.monotonic() + 30
while threads() > before and time.monotonic() < until:
    time.sleep(0.01)
print(threads() == before)
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "False True True True False False\nFalse False False True True\nTrue False\nTrue\n"),
        (
            {"GOMP_SPINCOUNT": SPINS},
            "False False False False False False\nFalse False False False False\nFalse False\nTrue\n",
        ),
    ],
)
def test_threads_sleep_early_while_cores_are_shared(settings, expected):
    assert run("-c", WATCHED, **settings).stdout == expected


def test_cores_count_as_shared_for_a_while_after_they_were_taken_away(monkeypatch):
    for name in DECIDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    now, used = [0.0], [(0, 0.0), (1, 1.0), (201, 2.0), (202, 3.0)]
    watch = CoreWatch(lambda: used.pop(0), lambda: now[0])
    found = []
    for _ in range(3):
        now[0] += INTERVAL
        watch.look()
        found.append(watch.shared)
    now[0] += HOLD
    assert [*found, watch.shared] == [False, True, True, False]


def test_a_single_thread_waits_for_nobody():
    used, times = iter([(0, 0.0), (1000, 1.0), (2000, 2.0)]), iter([0.0, INTERVAL, 2 * INTERVAL])
    watch = CoreWatch(lambda: next(used), lambda: next(times))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            watch.look()
            assert not watch.sleeping_early
    finally:
        torch.set_num_threads(before)
