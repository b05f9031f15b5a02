"""Runs one segment of a pipeline: datatrove's local executor with processes that end when this one does, or Ray's."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger

from nano3.config.errors import UserError
from nano3.curate.step import Segment

PR_SET_PDEATHSIG = 1
SILENT_RANK = 1
"""datatrove's local rank of a task that logs to its file alone."""
ENDED = (
    "ended from outside, as the system does where memory runs out: give the same command again to go on, with fewer "
    "--workers"
)
REACHED_WITHIN = 5.0
"""Seconds for a connection to a cluster of Ray."""
Done = Callable[[], None]


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for the tasks of all segments; None for one worker, which is this process."""
    logger.disable("datatrove")  # its tracebacks would come before the one line that a user needs
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(f"a worker process was {ENDED}") from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class RayPool:
    """Ray's processes, on this machine or on the cluster that RAY_ADDRESS names, for the tasks of all segments."""

    def __init__(self, workers: int) -> None:
        """Ray must be running; so many tasks run at once, at the most."""
        import ray

        cores = int(ray.cluster_resources().get("CPU", 1))
        self.workers = max(1, min(workers, cores))
        self._remote = ray.remote(num_cpus=-(-cores // self.workers))(_run_task)

    def submit(self, work: Callable, executor: LocalPipelineExecutor, rank: int) -> Future:
        """Run a task; `work` is `_run_task`."""
        return self._remote.remote(executor, rank).future()


def check_cluster(address: str) -> None:
    """Whether something listens where a cluster of Ray should: Ray itself would wait for minutes.

    Args:
        address: as of RAY_ADDRESS; one without a port (empty, auto, local) is Ray's own business.

    Raises:
        UserError: nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS {address}: no cluster of Ray ({error})") from error


@contextmanager
def ray_pool(workers: int) -> Iterator[RayPool]:
    """Ray, started with so many processes, or with no more of them on the cluster of RAY_ADDRESS."""
    import ray

    logger.disable("datatrove")
    address = os.environ.get("RAY_ADDRESS")
    here = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"RAY_ADDRESS {address}: no cluster of Ray" if address else "Ray does not start"
        raise UserError(f"{where} ({' '.join(str(error).split())[:200]})") from error
    try:
        yield RayPool(workers)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except ray.exceptions.RayError as error:  # its own words are of several lines
        raise UserError(f"a process of Ray was {ENDED}") from error
    finally:
        ray.shutdown()


def run_segment(segment: Segment, folder: Path, pool: ProcessPoolExecutor | RayPool | None, done: Done) -> None:
    """Run the tasks of a segment that are not complete; `done` is called for each task, also of an earlier run.

    Raises:
        Exception: that of the first task that failed; tasks that were complete before stay so.
    """
    executor = _executor(segment, folder)
    ranks = executor.get_incomplete_ranks()
    for _ in range(segment.tasks - len(ranks)):
        done()
    if pool is None:
        for rank in ranks:
            _run_task(executor, rank)
            done()
        return
    futures: list[Future] = [pool.submit(_run_task, executor, rank) for rank in ranks]
    for future in futures:
        future.add_done_callback(lambda _: done())
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        future.result()
    for future in futures:
        future.result()


def incomplete_ranks(segment: Segment, folder: Path) -> list[int]:
    """Tasks of a segment that are not complete."""
    logger.disable("datatrove")
    return _executor(segment, folder).get_incomplete_ranks()


def run_rank(segment: Segment, folder: Path, rank: int) -> None:
    """Run one task of a segment, if it is not complete."""
    _run_task(_executor(segment, folder), rank)


def _executor(segment: Segment, folder: Path) -> LocalPipelineExecutor:
    return LocalPipelineExecutor(list(segment.steps), segment.tasks, 1, str(folder))


def _run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    """One task, with steps of its own."""
    steps = executor.pipeline
    executor.pipeline = deepcopy(steps)
    try:
        executor._run_for_rank(rank, SILENT_RANK)
    finally:
        executor.pipeline = steps


def _begin(parent: int) -> None:
    """A worker process: Ctrl-C is its parent's business, and it ends when that does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logger.disable("datatrove")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
