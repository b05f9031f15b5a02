"""A tiny vocabulary and a maker of prepared folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nano3.data.build import build
from nano3.data.sources import find_inputs
from nano3.data.tokenizer import Tokenizer

CODE = "def add(a, b):\n    return a + b\n\n\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n"
PROSE = "The quick brown fox jumps over the lazy dog. Seven wizards cast 42 spells, twice. "


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A vocabulary of 400 entries."""
    return Tokenizer.train([CODE * 3, PROSE * 3, "日本語 naïve café"], 400)


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[[dict[str, str | bytes]], Path]:
    """Writes {name: content} below a folder and returns it."""

    def write(files: dict[str, str | bytes], folder: str = "texts") -> Path:
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / folder

    return write


@pytest.fixture
def prepared_folder(tmp_path: Path, tokenizer: Tokenizer, write_texts: Callable[..., Path]) -> Path:
    """40 documents of different lengths in several shards."""
    texts = {f"{i:02d}.txt": f"document {i}\n" + (PROSE if i % 2 else CODE) * (i % 5) for i in range(40)}
    folder = tmp_path / "prepared"
    build(folder, find_inputs([str(write_texts(texts))]).inputs, tokenizer, sources=["texts"], shard_tokens=700)
    return folder
