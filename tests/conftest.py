"""Settings and small models that several rooms' tests share."""

from __future__ import annotations

import gc
import logging
import os
import socketserver
import ssl
import sys
import tomllib
from functools import cache
from pathlib import Path

# `pytest -n 2` has a process for each core: two threads in each would wait for the other process's.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tables are as wide as in a pipe, not as the terminal that pytest-xdist tells its processes of.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

# Modules are compiled once, not in each of hundreds of processes, whatever the environment says.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import nano3  # noqa: F401 (before torch, whose threads then wait less for each other)

# No test reaches for a network: a missing file must fail at once, not after a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import _pytest.logging
import pytest
import torch
from hypothesis import settings

from nano3.config.model import ModelConfig
from nano3.model.lm import LM

# Each of hundreds of clients would read the certificates of the whole world, 30 ms of a core; they may share them.
ssl.create_default_context = cache(ssl.create_default_context)

# Python's own servers write an answer's head and body apart; the second would wait 40 ms for word of the first.
socketserver.StreamRequestHandler.disable_nagle_algorithm = True


_attach = _pytest.logging.catching_logs.__enter__


def _attach_to_root(self: _pytest.logging.catching_logs) -> logging.Handler:
    if self.level is not None or not hasattr(self, "attached_loggers"):  # --log-level; pytest before 9
        return _attach(self)
    logging.root.addHandler(self.handler)
    self.attached_loggers.append(logging.root)
    return self.handler


# pytest looks six times a test through the hundreds of loggers that there are, for those that tell the root nothing.
_pytest.logging.catching_logs.__enter__ = _attach_to_root

settings.register_profile("nano3", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("nano3")

DURATIONS = Path(__file__).with_name("durations.toml")
"""Seconds of the files that take longest, on one core."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems`: pytest-xdist would begin with the files of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process has a long one left when the others are done."""
    if "PYTEST_XDIST_WORKER" in os.environ and items:
        runs = "slow" if any(item.get_closest_marker("slow") for item in items) else "default"
        seconds = tomllib.loads(DURATIONS.read_text("utf-8"))[runs]
        items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], 0))


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules stay to the end: look through them once, not with every collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    """Every kind of block, sizes that share no factor by accident."""
    return ModelConfig(
        pattern="ME*-ME",
        vocab_size=97,
        d_model=32,
        init_std=0.2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        mamba_n_heads=6,
        mamba_head_dim=8,
        d_state=12,
        n_groups=2,
        chunk_size=16,
        n_experts=5,
        top_k=2,
        d_expert=20,
        d_shared=24,
        d_ff=40,
    )


@pytest.fixture
def small_model(small_config: ModelConfig) -> LM:
    """A model of `small_config` with random weights, some routing bias included."""
    model = LM(small_config).init_weights(seed=1)
    for i, bias in enumerate(model.expert_biases()):
        bias.copy_(torch.linspace(-0.1, 0.1, bias.numel()).roll(i))
    return model.eval()


SMALL_SIZES = """
pattern = "M*E"
vocab_size = 600
d_model = 32
n_heads = 2
n_kv_heads = 1
head_dim = 16
mamba_n_heads = 2
mamba_head_dim = 16
d_state = 16
n_groups = 1
n_experts = 4
top_k = 2
d_expert = 16
d_shared = 32
"""


@pytest.fixture
def small_sizes(tmp_path: Path) -> str:
    """A TOML file of a small model's sizes, for commands and benches that are given a model by such a file."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SIZES, "utf-8")
    return str(path)
