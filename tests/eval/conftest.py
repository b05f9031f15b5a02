"""A small random model as a target, a served one, and a small server whose answers a test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.launch import small_tokenizer
from nano3.eval.target import EngineTarget
from nano3.model.lm import LM
from nano3.serve.app import create_app
from nano3.serve.settings import Settings

from ..served import served as serving
from .servers import Answerer, answering


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 519 ids."""
    return small_tokenizer(4096)


@pytest.fixture(scope="session")
def lm(tokenizer) -> LM:
    """Every kind of block that holds state; sharp enough that greedy answers do not hang on rounding."""
    cfg = ModelConfig(
        pattern="M*E", vocab_size=tokenizer.vocab_size, d_model=32, init_std=0.2, n_heads=4, n_kv_heads=2, head_dim=8,
        mamba_n_heads=4, mamba_head_dim=8, d_state=16, n_groups=2, chunk_size=16, n_experts=4, top_k=2, d_expert=24,
        d_shared=24, max_position_embeddings=4096,
    )  # fmt: skip
    return LM(cfg).init_weights(0).eval()


@pytest.fixture
def make_engine(lm, tokenizer) -> Callable[..., Engine]:
    """Makes an engine over the model."""

    def make(**options: Any) -> Engine:
        return Engine(lm, tokenizer, **{"memory": 64 << 20, "max_sequences": 4, **options})

    return make


@pytest.fixture
def target(make_engine) -> Iterator[EngineTarget]:
    """The model as a target."""
    target = EngineTarget(make_engine(), "small")
    yield target
    target.close()


@pytest.fixture
def served(make_engine) -> Iterator[str]:
    """Address of a nano3 server over the model."""
    with serving(create_app(make_engine(), name="small", settings=Settings())) as url:
        yield url


@pytest.fixture
def serve_answers() -> Callable[[Answerer], Any]:
    """`with serve_answers(f) as url`: a server that answers with f(path, body)."""
    return answering
