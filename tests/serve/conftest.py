"""A real server on a free port, over a small model with random weights, for all tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.launch import small_tokenizer
from nano3.model.lm import LM
from nano3.serve.app import create_app
from nano3.serve.service import Service
from nano3.serve.settings import Settings

from ..served import served

NAME = "small"


@dataclass
class RunningServer:
    """A server and what it is made of; the engine belongs to the server's thread, so only look at `thread.stats()`."""

    url: str
    engine: Engine
    tokenizer: Tokenizer
    model: str
    """The name to send."""
    service: Service

    def client(self, **options: Any) -> httpx2.Client:
        """A client of this server."""
        return httpx2.Client(base_url=self.url, timeout=300, trust_env=False, **options)

    def stats(self) -> Any:
        """The engine's counters as of its last step."""
        return self.service.thread.stats()


def random_model(tokenizer: Tokenizer, seed: int = 0) -> LM:
    """Every kind of block the engine holds state for; sharp enough that greedy answers do not hang on rounding."""
    cfg = ModelConfig(
        pattern="M*E",
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        init_std=0.2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        mamba_n_heads=4,
        mamba_head_dim=8,
        d_state=16,
        n_groups=2,
        chunk_size=16,
        n_experts=4,
        top_k=2,
        d_expert=24,
        d_shared=24,
        max_position_embeddings=4096,
    )
    return LM(cfg).init_weights(seed).eval()


@contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[RunningServer]:
    """The engine served from a thread until the block ends."""
    app = create_app(engine, name=NAME, settings=Settings(**settings))
    with served(app) as url:
        yield RunningServer(url, engine, engine.tokenizer, NAME, app.state.service)


def new_engine(tokenizer: Tokenizer, kind: type[Engine] = Engine, **options: Any) -> Engine:
    """An engine over the random model, in little memory."""
    options = {"memory": 64 << 20, "max_sequences": 8, "snapshot_every": 64, "page_size": 16} | options
    return kind(random_model(tokenizer), tokenizer, **options)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """As a preset gets it."""
    return small_tokenizer(600)


@pytest.fixture(scope="session")
def server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    """One server for all tests that leave it as it was."""
    torch.set_num_threads(1)
    with running(new_engine(tokenizer)) as found:
        yield found


@pytest.fixture
def start(tokenizer: Tokenizer) -> Iterator[Callable[..., RunningServer]]:
    """Starts a server of the test's own: an engine (None: as the shared one's), then its settings."""
    with ExitStack() as stack:

        def start(engine: Engine | None = None, **settings: Any) -> RunningServer:
            return stack.enter_context(running(engine or new_engine(tokenizer), **settings))

        yield start


@pytest.fixture
def make_engine(tokenizer: Tokenizer) -> Callable[..., Engine]:
    """Engines over the random model: `make_engine(kind=Engine, **options)`."""
    return functools.partial(new_engine, tokenizer)


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    """A client of the shared server."""
    with server.client() as found:
        yield found
