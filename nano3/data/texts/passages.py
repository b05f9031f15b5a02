"""A corpus as passages: stretches of its documents, cut where lines begin, none of them held out."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nano3.config.errors import UserError
from nano3.data.texts.corpus import is_heldout, mix
from nano3.data.texts.readers import Document, Input
from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.build import content_hash

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer

PASSAGE_CHARACTERS = 800
"""Passages are as near below this as their lines allow; one long line is cut at a space."""
SECTION_PASSAGES = 32
"""Longer documents are given out in sections, so that a corpus of one book has several too."""
LEAST_CHUNK, MOST_CHUNK = 240, 1200
"""Characters of a chunk, a piece of text between which other sentences can stand."""
CORPUS_CHARACTERS = 1 << 27
"""Most text kept in memory; of more, a sample of the documents is kept."""

_TOP_LEVEL = re.compile(r"\n(?=\S)")
_PARAGRAPH = re.compile(r"\n[ \t]*\n(?=\S)")


@dataclass(frozen=True)
class Section:
    """Consecutive passages of one document: passage i is characters [bounds[i], bounds[i + 1])."""

    title: str
    """Name of the document, with the number of the part where it has several; unique in its index."""
    document: int
    bounds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.bounds) - 1


class Sample:
    """Documents of at most CORPUS_CHARACTERS, or one: those with the smallest hashes of all that are not held out.

    Attributes:
        n_read: documents that are not held out.
        size_read: characters of these.
        size: characters of those kept.
        any_held: whether a document is held out.
    """

    def __init__(self, heldout_fraction: float, seed: int) -> None:
        self.n_read = self.size_read = self.size = 0
        self.any_held = False
        self._fraction, self._seed = heldout_fraction, seed
        self._kept: list[tuple[int, int, Document]] = []
        self._bound = 1 << 64

    def add(self, document: Document) -> None:
        """Look at one more document."""
        hashes = np.array([content_hash(document.text)], np.uint64)
        if is_heldout(hashes, self._fraction, self._seed)[0]:
            self.any_held = True
            return
        self.n_read += 1
        self.size_read += len(document.text)
        # A hash of its own, which has nothing to do with the split.
        rank = int(mix(mix(hashes))[0])
        if rank >= self._bound:
            return
        heapq.heappush(self._kept, (-rank, -self.n_read, document))
        self.size += len(document.text)
        while self.size > CORPUS_CHARACTERS and len(self._kept) > 1:
            last = heapq.heappop(self._kept)
            self._bound = min(self._bound, -last[0])
            self.size -= len(last[2].text)

    def documents(self) -> list[Document]:
        """Those kept, in the order in which they came."""
        return [document for _, _, document in sorted(self._kept, key=lambda kept: -kept[1])]


class PassageIndex:
    """The documents of a corpus, cut into sections and passages; depends on their names and texts alone.

    Attributes:
        sections: all sections in the order of the documents.
        n_characters: characters of all passages.
        passages: (section, passage in it) of every passage.
        documents_left_out: documents that `read` left out because there is more text than is kept in memory.
        share_kept: share of the characters that was kept.
    """

    documents_left_out = 0
    share_kept = 1.0

    def __init__(self, documents: Sequence[Document], passage_characters: int = PASSAGE_CHARACTERS) -> None:
        """Raises UserError where no document has text."""
        self._texts = [document.text.replace("\r\n", "\n") for document in documents]
        self.sections: list[Section] = []
        names = _unique([document.name for document in documents])
        for number, (name, text) in enumerate(zip(names, self._texts, strict=True)):
            self.sections += _sections(name, number, _bounds(text, passage_characters))
        if not self.sections:
            raise UserError("no text to make questions from: give other texts in data.generate.sources")
        self.n_characters = sum(section.bounds[-1] - section.bounds[0] for section in self.sections)
        self.passages = [(s, p) for s, section in enumerate(self.sections) for p in range(len(section))]

    @classmethod
    def read(
        cls,
        inputs: Iterable[Input],
        heldout_fraction: float = 0.0,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        cut_ends: bool | None = None,
    ) -> PassageIndex:
        """Index of the documents of `inputs` that a run with this fraction and seed trains on.

        Of more than CORPUS_CHARACTERS the documents with the smallest hashes are kept: a sample over all inputs that
        their order does not change. Texts draw their passages independently of each other, so a passage comes again
        about (tokens of all texts) / (tokens kept) times.

        Args:
            inputs: the texts.
            heldout_fraction: share of the documents that the run holds out.
            seed: seed of that split.
            tokenizer: the run's, needed where ends are left out.
            cut_ends: whether the run holds out the end of one document (see tokens.prepare.split_all): then the
                last `heldout_fraction` of every document's tokens is left out. None: where no document of `inputs`
                is held out by its hash.

        Raises:
            UserError: no text is left, or a tokenizer is needed to find those ends.
        """
        sample = Sample(heldout_fraction, seed)
        for source in inputs:
            for document in source.documents(Skipped()):
                if document is not None:
                    sample.add(document)
        kept = sample.documents()
        if cut_ends is None:
            cut_ends = not sample.any_held
        if heldout_fraction > 0 and cut_ends:
            if tokenizer is None:
                raise UserError("the ends of documents are held out: the tokenizer is needed to leave them out")
            kept = [_without_end(document, heldout_fraction, tokenizer) for document in kept]
        index = cls(kept)
        index.documents_left_out, index.share_kept = sample.n_read - len(kept), sample.size / max(1, sample.size_read)
        return index

    def text(self, section: int, start: int = 0, stop: int | None = None) -> str:
        """Passages [start, stop) of a section, without blank lines around them."""
        found = self.sections[section]
        stop = len(found) if stop is None else stop
        return _trimmed(self._texts[found.document][found.bounds[start] : found.bounds[stop]])

    def chunks(self, section: int) -> list[str]:
        """Text of a section in small pieces that begin with no white space."""
        found = self.sections[section]
        text = self._texts[found.document][found.bounds[0] : found.bounds[-1]]
        chunks = []
        while text := text.strip():
            stop = len(text) if len(text) <= MOST_CHUNK else _chunk_end(text)
            chunks.append(text[:stop].rstrip())
            text = text[stop:]
        return chunks


def _chunk_end(text: str) -> int:
    """Where the first chunk of a text ends: before a line at the margin, else a line, else at a space."""
    match = _TOP_LEVEL.search(text, LEAST_CHUNK, MOST_CHUNK)
    if match:
        return match.start()
    ends = [text.rfind(mark, LEAST_CHUNK, MOST_CHUNK) for mark in ("\n", " ")]
    return next((end for end in ends if end > 0), MOST_CHUNK)


def _bounds(text: str, size: int) -> list[int]:
    """Ends of passages, 0 first: cut at the last paragraph, else margin, else line, else space before `size`."""
    bounds, start = [0], 0
    while len(text) - start > size * 5 // 4:
        window = text[start : start + size + 1]
        start += _cut(window, size)
        bounds.append(start)
    if text[start:].strip():
        bounds.append(len(text))
    return [bound for i, bound in enumerate(bounds) if not i or text[bounds[i - 1] : bound].strip()]


def _cut(window: str, size: int) -> int:
    for pattern in (_PARAGRAPH, _TOP_LEVEL):
        ends = [match.end() for match in pattern.finditer(window) if match.end() >= size // 2]
        if ends:
            return ends[-1]
    for mark in ("\n", " "):
        place = window.rfind(mark, size // 4)
        if place >= 0:
            return place + 1
    return size


def _sections(name: str, document: int, bounds: list[int]) -> list[Section]:
    n = len(bounds) - 1
    parts = -(-n // SECTION_PASSAGES)
    sections = []
    for part in range(parts):
        first, last = n * part // parts, n * (part + 1) // parts
        title = name if parts == 1 else f"{name}, part {part + 1} of {parts}"
        sections.append(Section(title, document, tuple(bounds[first : last + 1])))
    return sections


def _unique(names: list[str]) -> list[str]:
    """Names with a number after those that came before."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, n = name, 1
        while candidate in taken:
            n += 1
            candidate = f"{name} ({n})"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _trimmed(text: str) -> str:
    """Without blank lines at both ends; the first line keeps its indentation."""
    text = text.rstrip()
    return text[len(text) - len(text.lstrip()) :] if not text[:1].isspace() else text[_first_line(text) :]


def _first_line(text: str) -> int:
    """Start of the first line that is not blank."""
    margin = len(text) - len(text.lstrip())
    return text.rfind("\n", 0, margin) + 1


def _without_end(document: Document, fraction: float, tokenizer: Tokenizer) -> Document:
    ids = tokenizer.encode(document.text)
    kept = tokenizer.decode(ids[: len(ids) - max(1, round(len(ids) * fraction))])
    while kept and not document.text.startswith(kept):
        kept = kept[:-1]
    return Document(document.name, kept)
