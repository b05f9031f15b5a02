"""A tiny real run in this process (`tiny`) and in processes of its own (`launch`)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from ..forked import start_ranks

SCRIPT = Path(__file__).with_name("tiny_run.py")


def _load_script():
    spec = importlib.util.spec_from_file_location("tiny_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_run"] = module
    spec.loader.exec_module(module)
    return module


TINY = _load_script()


@pytest.fixture(scope="session")
def tiny():
    """The module tests/train/tiny_run.py."""
    return TINY


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums come out the same here and in other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_charts(request, monkeypatch):
    """Charts take longer than these runs; only tests that ask for `draws_charts` draw them."""
    if "draws_charts" not in request.fixturenames:
        monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


@pytest.fixture
def draws_charts():
    """Asks for charts."""


@pytest.fixture
def processes():
    """Starts a Python command on `ranks` processes and returns them; all are ended with the test."""
    running = []

    def start(*arguments, ranks=1):
        started = start_ranks(*arguments, ranks=ranks)
        running.extend(started)
        return started

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def launch(processes):
    """Starts tiny_run.py on `ranks` processes and returns them."""

    def start(run_dir, *flags, ranks=1, settings=None):
        return processes(str(SCRIPT), str(run_dir), "--settings", json.dumps(settings or {}), *flags, ranks=ranks)

    return start


@pytest.fixture
def complete(launch):
    """Runs tiny_run.py to its end on `ranks` processes; returns what the first rank printed."""

    def run(run_dir, *flags, ranks=1, settings=None):
        outputs = [p.communicate(timeout=300) for p in launch(run_dir, *flags, ranks=ranks, settings=settings)]
        return outputs[0][0]

    return run
