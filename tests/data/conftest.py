"""A tiny vocabulary and a maker of prepared folders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from nano3.data.generated.words import ADJECTIVES, NOUNS
from nano3.data.texts.corpus import Corpus
from nano3.data.texts.readers import Document
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.sources import find_inputs
from nano3.data.tokens.build import build
from nano3.data.tokens.shards import EncodedDocument, Manifest, ShardFolder, write_manifest, write_shard
from nano3.data.tokens.tokenizer import Tokenizer

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


@pytest.fixture(scope="session")
def library() -> list[Document]:
    """Sixty documents, prose and Python source, whose lines are nearly all different."""
    rng = random.Random(5)
    return [Document(f"{i:02d}.{'py' if i % 2 else 'txt'}", (_module if i % 2 else _story)(rng)) for i in range(60)]


def _story(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(20, 40)):
        things = (f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(3))
        lines.append("In {} the {} stood by the {}, and the {} saw it.".format(rng.randint(1000, 9999), *things))
    return "\n".join(lines) + "\n"


def _module(rng: random.Random) -> str:
    parts = [f"LIMIT_{rng.choice(NOUNS).upper()}_{rng.randint(10, 99)} = {rng.randint(10, 9999)}\n"]
    for _ in range(6):
        name, other = (f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}" for _ in range(2))
        kind, value, step = f"{rng.choice(NOUNS).title()}{rng.randint(10, 99)}", rng.random(), rng.randint(1000, 9999)
        parts.append(f"class {kind}:\n    def {name}(self, {other}={value:.4f}):")
        parts.append(f"        {other} += self.{rng.choice(NOUNS)}({step})\n        return {other}\n\n")
    return "\n".join(parts)


@dataclass(frozen=True)
class Listed:
    """Documents in memory as an input."""

    found: tuple[Document, ...]
    name: str = "listed"
    size: int = 1

    def identity(self) -> str:
        """Their texts."""
        return repr(self.found)

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """All of them."""
        del skipped
        yield from self.found


@pytest.fixture
def listed(library: list[Document]) -> Listed:
    """The library as an input."""
    return Listed(tuple(library))


@pytest.fixture(scope="session")
def corpus_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Corpus]:
    """Makes a corpus of documents with these lengths; every token of it is different."""

    def make(lengths: list[int], hashes: list[int] | None = None) -> Corpus:
        folder = tmp_path_factory.mktemp("p")
        starts = np.cumsum([10, *lengths])
        documents = [
            EncodedDocument(f"d{i}", np.arange(starts[i], starts[i + 1]), 3 * n + i, hashes[i] if hashes else i)
            for i, n in enumerate(lengths)
        ]
        write_shard(folder, 0, documents[:3], np.dtype(np.uint16), (0, 0), Skipped())
        if documents[3:]:
            write_shard(folder, 1, documents[3:], np.dtype(np.uint16), (0, 0), Skipped())
        write_manifest(folder, Manifest("k", 1 + bool(documents[3:]), len(documents), 0, 0, "uint16", 100))
        return Corpus([ShardFolder(folder)])

    return make
