"""Python commands in processes forked from one that has imported torch, its distributed parts and the trainer.

A fresh process spends seconds on these imports, and a test on two ranks has two processes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import types
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

CHILD = Path(__file__).with_name("forked_child.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "nano3",
        "nano3.data.tokens.steps",
        "nano3.train.trainer",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
    ]
)


class Forked:
    """A running Python command, with the part of `subprocess.Popen` that tests use.

    Args:
        arguments: of the interpreter: SCRIPT, `-c` CODE or `-m` MODULE, and then those of the command.
        env: the environment.
        cwd: the folder that it runs in. Default: the one of this process now.
        charts: whether it draws charts, which take longer than the runs of tests.
    """

    def __init__(
        self, arguments: list[str], env: dict[str, str], cwd: Path | None = None, charts: bool = False
    ) -> None:
        read, write = os.pipe()
        self.stdout = os.fdopen(read, encoding="utf-8")
        self.stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
        streams = [Connection(fd, readable=False) for fd in (write, os.dup(self.stderr.fileno()))]
        given = {
            "arguments": [str(argument) for argument in arguments], "environment": env, "streams": streams,
            "folder": str(cwd or Path.cwd()), "charts": charts,
        }  # fmt: skip
        self._process = CONTEXT.Process(target=runpy.run_path, args=(str(CHILD),), kwargs={"init_globals": given})
        # The child would import the main module of the tests' process as its own; the first call starts the server.
        main = mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")})
        with main, mock.patch.dict(os.environ, ONE_THREAD):
            self._process.start()
        for stream in streams:
            stream.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of Popen: negative for a signal, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Signal `number` to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def wait(self) -> int | None:
        """Wait for its end."""
        self._process.join()
        return self._process.exitcode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it wrote to stdout and stderr, after its end; TimeoutExpired where that takes `timeout` seconds."""
        late = threading.Event()
        timer = threading.Timer(timeout, lambda: (late.set(), self.kill()))
        timer.start()
        out = self.stdout.read()
        self._process.join()
        timer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired("forked", timeout)
        self.stderr.seek(0)
        return out, self.stderr.read()


def run_forked(
    *arguments: object, env: dict[str, str] | None = None, charts: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS...` to its end, in a process that has the imports already: for tests of what a process of its
    own does, not of how it starts.

    Args:
        arguments: as those of Forked.
        env: the environment. Default: this process's with one thread.
        charts: as of Forked.
    """
    words = [str(argument) for argument in arguments]
    process = Forked(words, {**os.environ, **ONE_THREAD} if env is None else env, charts=charts)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def start_ranks(*arguments: str, ranks: int = 1) -> list[Forked]:
    """The command on `ranks` processes that find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
        started.append(Forked(list(arguments), {**os.environ, **ONE_THREAD, **place}))
    return started
