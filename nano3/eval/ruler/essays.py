"""Prose for the essay haystacks: a text folder, the reference's file, or the documentation of Python itself."""

from __future__ import annotations

import platform
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

from nano3.config.errors import UserError
from nano3.eval.ruler.reference import digest, is_reference
from nano3.reading import parse_json, read_text

SUFFIXES = (".txt", ".md", ".rst", ".text")
LEAST_WORDS = 100
PARAGRAPH_WORDS = 12
PROSE_SHARE = 0.95
"""Share of letters, blanks and commas from which a paragraph of documentation counts as prose."""
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|St|Jr|No|Fig|[A-Z]))\.$")


@dataclass(frozen=True)
class Essays:
    """Running text, cut into sentences."""

    label: str
    is_reference: bool
    text: str
    """All essays, one blank between words."""

    @cached_property
    def _sentences(self) -> list[str]:
        return split_sentences(self.text)

    @cached_property
    def _ends(self) -> list[int]:
        """Words up to the end of each sentence."""
        return list(accumulate(sentence.count(" ") + 1 for sentence in self._sentences))

    @property
    def n_words(self) -> int:
        """Words before the text starts again."""
        return self._ends[-1]

    def sentences(self, n_words: int) -> list[str]:
        """The first `n_words` words, the last sentence cut where they end; a text that is too short is repeated."""
        rounds, rest = divmod(n_words, self.n_words)
        whole = bisect_left(self._ends, rest + 1)
        cut = rest - (self._ends[whole - 1] if whole else 0)
        tail = [" ".join(self._sentences[whole].split(" ")[:cut])] if cut else []
        return self._sentences * rounds + self._sentences[:whole] + tail


def split_sentences(text: str) -> list[str]:
    """Sentences of a text with single blanks; the reference uses nltk's punkt, which must be downloaded."""
    sentences: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        sentence = text[start : match.end()].rstrip()
        if not ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = match.end()
    return [*sentences, text[start:]] if start < len(text) else sentences


def read_essays(path: Path | None) -> Essays:
    """Essays of a folder, of one file, or (None) of the running Python's documentation.

    Raises:
        UserError: nothing readable there.
    """
    if path is None:
        return _documentation()
    if not path.exists():
        raise UserError(f"no essays at {path}: give a folder of text files (--essays)")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    text = _squeeze(" ".join(_read(file) for file in files))
    n_words = text.count(" ") + 1
    if n_words < LEAST_WORDS:
        kinds = ", ".join(SUFFIXES)
        raise UserError(
            f"{path} has {n_words if text else 0} words of text in {kinds} files: --essays needs {LEAST_WORDS}"
        )
    label = f"{path.resolve().name} ({n_words} words, {digest(text.encode())})"
    return Essays(label, is_reference("essays", path), text)


def _read(file: Path) -> str:
    text = read_text(file, f"--essays: {file}")
    if file.suffix != ".json":
        return text
    try:
        return str(parse_json(text)["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{file} is not a JSON file with a field "text" (--essays)') from error


@lru_cache(maxsize=1)
def _documentation() -> Essays:
    from nano3.data.texts.skipped import Skipped
    from nano3.data.texts.stdlib_corpus import NAME, StandardLibrary

    paragraphs: dict[str, None] = {}
    try:
        documents = [d for d in StandardLibrary().documents(Skipped()) if d is not None]
    except ValueError as error:
        raise UserError(f"{error}; or name a folder of texts with --essays") from error
    for document in sorted(documents, key=lambda d: (d.name.endswith(".py"), d.name)):
        texts = DOCSTRING.findall(document.text) if document.name.endswith(".py") else [document.text]
        for text in texts:
            paragraphs.update(dict.fromkeys(_prose(text)))
    text = " ".join(paragraphs)
    label = f"prose of {NAME} {platform.python_version()} ({text.count(' ') + 1} words, {digest(text.encode())})"
    return Essays(label, False, text)


def _prose(text: str) -> Iterator[str]:
    """Paragraphs that read like sentences: no tables, code or lists of names."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if len(words) < PARAGRAPH_WORDS or ">>>" in paragraph or words[-1][-1] not in ".!?":
            continue
        joined = " ".join(words)
        if sum(c.isalpha() or c in " ,.'" for c in joined) >= PROSE_SHARE * len(joined):
            yield joined


def _squeeze(text: str) -> str:
    return " ".join(text.split())
