"""Code blocks and display equations of a page, cut out before a model sees it and put back unchanged after."""

from __future__ import annotations

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nano3.curate.ask.answers import DropError
from nano3.curate.ask.model import Model

_FENCE = re.compile(r"([ \t]*(?:`{3,}|~{3,}))[ \t]*([\w+#.-]*)[^`]*$")
_BARE = re.compile(r"[ \t]*(?:`{3,}|~{3,}|\$\$|\\\[|\\\])$")
_EQUATION_ENDS = {"$$": "$$", "\\[": "\\]"}
_LINE_EQUATION = re.compile(r"[ \t]*(?:\$\$[^$]+\$\$|\\\[.+\\\])[ \t\r]*$")
_ANY_FENCE = re.compile(r"^[ \t>]*(?:`{3,}|~{3,})", re.MULTILINE)
CHARACTERS_A_TOKEN = 2.5
"""Of a text in a language with an alphabet, by most tokenizers and at the least."""
_SHOWN = 120
"""Characters shown of a block's first and last line."""


@dataclass(frozen=True)
class Block:
    """One code block or display equation, fences and all."""

    marker: str
    text: str

    def outline(self) -> str:
        """The marker with the first and the last line of what is inside: all that a model sees of it."""
        whole = self.text.split("\n")
        lines = [line for line in whole[1:-1] or whole if line.strip()] or [""]
        first, last = (line.strip()[:_SHOWN] for line in (lines[0], lines[-1]))
        return f"{self.marker} {first}" + (f" ... {last}" if len(lines) > 1 else "")


@dataclass(frozen=True)
class Chunk:
    """A part of a page as a model sees it."""

    text: str
    """With a marker, on a line of its own, in place of each block."""
    blocks: tuple[Block, ...]
    """What the markers stand for, in order."""

    def outline(self) -> str:
        """First and last lines of the blocks, a line a block."""
        return "\n".join(block.outline() for block in self.blocks)

    def without_markers(self, reply: str | None = None) -> str:
        """The words of the chunk, or of a reply to it."""
        text = self.text if reply is None else reply
        return re.sub(_pattern(self.blocks), "", text) if self.blocks else text

    def check_closed(self) -> None:
        """Raise DropError where the text has a fence outside the blocks: the model would see its code."""
        if _ANY_FENCE.search(self.without_markers()):
            raise DropError("code block that is not closed as it was opened")

    def restored(self, reply: str) -> str:
        """The reply with each block back in the place of its marker.

        Raises:
            DropError: a marker is missing, comes twice or in another place, or the reply has a code block of its own.
        """
        if _ANY_FENCE.search(reply):
            raise DropError("code block added")
        found = list(re.finditer(_pattern(self.blocks), reply)) if self.blocks else []
        if [one[0] for one in found] != [block.marker for block in self.blocks]:
            raise DropError("markers not once each and in order")
        pieces, place = [], 0
        for one, block in zip(found, self.blocks, strict=True):
            pieces += [reply[place : one.start()].strip(), block.text]
            place = one.end()
        return "\n\n".join(piece for piece in [*pieces, reply[place:].strip()] if piece)


def _pattern(blocks: Sequence[Block]) -> str:
    """Whatever looks like a marker, also one that is not among the blocks."""
    names = sorted({re.escape(block.marker.split(" ", 1)[0]) for block in blocks})
    return rf"(?:{'|'.join(names)}) \d+[^\]\n]*\]\]"


def cut_out(text: str, longest: int) -> list[Chunk]:
    """A page in chunks of about `longest` characters, which end between blocks or paragraphs, never inside a block.

    A paragraph that is longer is divided between lines. What is not a block of code or a display equation on lines of
    its own, such as a fence that nothing closes, stays text.
    """
    names = {kind: f"[[{_unused(kind, text)}" for kind in ("CODE", "EQUATION")}
    parts: list[tuple[str, Block | None]] = []
    n = 0
    for part, kind, language in text_parts(text):
        if kind:
            n += 1
            block = Block(f"{names[kind]} {n}{f' {language}' if language else ''}]]", part)
            parts.append((block.marker, block))
        else:
            parts += [(paragraph, None) for paragraph in _paragraphs(part, longest)]
    return list(_grouped(parts, longest))


def _unused(word: str, text: str) -> str:
    while f"[[{word} " in text:
        word += "X"
    return word


def text_parts(text: str) -> Iterator[tuple[str, str, str]]:
    """Text and blocks in order, each as (text, kind, language): kind is CODE, EQUATION or, for what is no block, empty.

    A block of code has its fences, and is closed by one that is indented as it; its language is the first word
    behind the opening one. An equation stands on lines of its own, between double dollar signs or \\[ and \\].
    """
    lines = text.split("\n")
    ends = defaultdict(list)
    for i, line in enumerate(lines):
        if _BARE.match(bare := line.rstrip(" \t\r")):
            ends[bare].append(i)
    start, i = 0, 0
    while i < len(lines):
        kind, end, language = _opening(lines[i])
        later = ends[end]
        at = bisect(later, i)
        closing = i if kind and not end else later[at] if kind and at < len(later) else None
        if closing is None:
            i += 1
            continue
        if start < i:
            yield "\n".join(lines[start:i]), "", ""
        yield "\n".join(lines[i : closing + 1]), kind, language
        start = i = closing + 1
    if start < len(lines):
        yield "\n".join(lines[start:]), "", ""


def _opening(line: str) -> tuple[str, str, str]:
    """What a line opens: (kind, the line that closes it, language). Nothing closes an equation of one line."""
    if found := _FENCE.match(line):
        return "CODE", found[1], found[2]
    bare = line.strip(" \t\r")
    if bare in _EQUATION_ENDS:
        return "EQUATION", line.rstrip(" \t\r").replace(bare, _EQUATION_ENDS[bare]), ""
    return ("EQUATION", "", "") if _LINE_EQUATION.match(line) else ("", "", "")


def _paragraphs(text: str, longest: int) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if len(paragraph) <= longest:
            if paragraph.strip():
                yield paragraph.strip("\n")
            continue
        piece: list[str] = []
        size = 0
        for line in paragraph.split("\n"):
            if piece and size + len(line) > longest:
                yield "\n".join(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line) + 1
        yield "\n".join(piece)


def _grouped(parts: Sequence[tuple[str, Block | None]], longest: int) -> Iterator[Chunk]:
    texts: list[str] = []
    blocks: list[Block] = []
    size = 0
    for text, block in parts:
        if texts and size + len(text) > longest:
            yield Chunk("\n\n".join(texts), tuple(blocks))
            texts, blocks, size = [], [], 0
        texts.append(text)
        size += len(text) + 2
        if block:
            blocks.append(block)
    if texts:
        yield Chunk("\n\n".join(texts), tuple(blocks))


def fitting(settings: Any, model: Model | None, characters: float = CHARACTERS_A_TOKEN) -> tuple[int, int]:
    """Characters of a chunk and tokens of an answer: as the settings say (`chunk`, `max_tokens`), and at most half of
    the model's context each.

    Args:
        settings: of a step.
        model: that it asks; None or one without a known context: as the settings say.
        characters: of a token, at the least.
    """
    half = model.window // 2 if model else 0
    if not half:
        return settings.chunk, settings.max_tokens
    return max(1, min(settings.chunk, int(half * characters))), min(settings.max_tokens, half)


def text_chunks(text: str, longest: int) -> list[str]:
    """A text in pieces of about `longest` characters, which end between paragraphs and never inside a block."""
    parts: list[tuple[str, Block | None]] = []
    for part, kind, _ in text_parts(text):
        parts += [(part, None)] if kind else [(paragraph, None) for paragraph in _paragraphs(part, longest)]
    return [chunk.text for chunk in _grouped(parts, longest)]
