"""Two hosts, as network namespaces, under torchrun: the numbers of one host, also after one of them died."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nano3.train.tracking.metrics import read_metrics, without_clock

SCRIPT = Path(__file__).parents[1] / "train" / "tiny_run.py"
HALVES = {"schedule": {"horizon_tokens": 384}, "parallel": {"timeout_s": 60}}
SECONDS = 180


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


class Hosts:
    """Two namespaces with an address each, 10.177.0.1 and 10.177.0.2."""

    def __init__(self) -> None:
        self.mark = f"n{os.getpid() % 100_000}"
        self.names = [f"{self.mark}h{i}" for i in (1, 2)]
        self.running: list[subprocess.Popen] = []

    def open(self) -> bool:
        """Make them; whether that is allowed here."""
        made = _ip("link", "add", self.mark, "type", "bridge") and _ip("link", "set", self.mark, "up")
        for i, name in enumerate(self.names, start=1):
            made = made and _ip("netns", "add", name)
            made = made and _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            made = made and _ip("link", "set", f"{name}v", "master", self.mark, "up")
            made = made and _ip("-n", name, "addr", "add", f"10.177.0.{i}/24", "dev", "eth0")
            made = made and _ip("-n", name, "link", "set", "eth0", "up") and _ip("-n", name, "link", "set", "lo", "up")
        return made

    def close(self) -> None:
        """End what runs in them, and remove them."""
        for host in range(len(self.names)):
            self.kill(host)
        for process in self.running:
            process.wait()
        for name in self.names:
            _ip("netns", "del", name)
            _ip("link", "del", f"{name}v")
        _ip("link", "del", self.mark)

    def kill(self, host: int) -> None:
        """End all that runs on a host, as a power failure does."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False)
        for process in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def torchrun(self, logs: Path, *words: str) -> list[subprocess.Popen]:
        """The same command by a torchrun on each host, one process each; what they print goes to LOGS-1, LOGS-2."""
        started = []
        for i, name in enumerate(self.names):
            command = [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--nproc-per-node", "1", "--node-rank", str(i), "--master-addr", "10.177.0.1", "--master-port", "29511",
                str(SCRIPT), *words,
            ]  # fmt: skip
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONUNBUFFERED": "1"}
            with open(f"{logs}-{i + 1}", "wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        self.running += started
        return started


@pytest.fixture
def hosts():
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip")
    found = Hosts()
    try:
        if not found.open():
            pytest.skip("no network namespaces here")
        yield found
    finally:
        found.close()


def _until(done, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_two_hosts_train_as_one_and_go_on_exactly_after_one_of_them_died(hosts, finish, tmp_path):
    alone = finish("one", "--source", "slow", ranks=2, **HALVES)
    folder = tmp_path / "two"
    words = [str(folder), "--source", "slow", "--settings", json.dumps(HALVES)]
    first, _ = hosts.torchrun(tmp_path / "first", *words)
    _until(lambda: (folder / "checkpoints" / "step-2").exists() or first.poll() is not None)
    assert first.poll() is None, Path(f"{tmp_path}/first-1").read_text()
    hosts.kill(1)
    assert first.wait(timeout=SECONDS) != 0
    assert "the connection to another process broke" in Path(f"{tmp_path}/first-1").read_text()
    again = hosts.torchrun(tmp_path / "again", *words, "--resume")
    assert [process.wait(timeout=SECONDS) for process in again] == [0, 0], Path(f"{tmp_path}/again-1").read_text()
    assert "resuming from" in Path(f"{tmp_path}/again-1").read_text()
    run = alone.at(folder)
    assert without_clock(read_metrics(folder / "metrics.jsonl")) == without_clock(alone.metrics)
    states = run.state(6), alone.state(6)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
