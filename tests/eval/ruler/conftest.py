"""A tokenizer and sources for the RULER tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.ruler import CountTokens, Sources
from nano3.eval.ruler.words import built_in


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level vocabulary of 2048 entries, trained on documents of the project."""
    texts = [file.read_text("utf-8") for file in sorted(Path(__file__).parents[3].glob("*.md"))]
    return Tokenizer.train(texts, 2048)


@pytest.fixture(scope="session")
def count(tokenizer: Tokenizer) -> CountTokens:
    """Exact number of tokens."""
    return lambda text: len(tokenizer.encode(text))


@pytest.fixture(scope="session")
def sources() -> Sources:
    """The data that nano3 brings, whatever else is installed."""
    return Sources(words=built_in())
