"""Token by token: what the model writes and what it reads, at the terminal and on a page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from nano3.files import write_atomic

if TYPE_CHECKING:
    from rich.text import Text

    from nano3.data.tokens.tokenizer import Tokenizer

GIVEN, WRITTEN, FORCED = 0, 1, 2
"""Kinds of tokens: read by the model, written by it, or put in its place by a limit."""
STYLES = {
    GIVEN: ("dim", "dim"),
    WRITTEN: ("black on green3", "black on spring_green2"),
    FORCED: ("black on orange1", "black on gold1"),
}
"""Of tokens by turns, so that their ends can be seen."""
BRACKETS = {GIVEN: ("", ""), WRITTEN: ("«", "»"), FORCED: ("‹", "›")}
"""Around a stretch of one kind where there are no colours."""
HALF = "\ufffd"
LONGEST_CHARACTER = 4
"""Tokens that one character is made of at most."""


@dataclass(frozen=True)
class Piece:
    """A token, or the few that one character is made of."""

    text: str
    ids: Sequence[int]
    kind: int
    start: int
    """Place of its first token."""
    number: int
    """Of the piece, from 0."""
    first: bool
    """It begins a stretch of its kind."""
    last: bool
    """It ends one."""


def pieces(ids: Sequence[int], kinds: Sequence[int], tokenizer: Tokenizer) -> Iterator[Piece]:
    """The pieces of a sequence, in order.

    Args:
        ids: (T,).
        kinds: (T,) of GIVEN, WRITTEN and FORCED, or bools of what is written.
        tokenizer: of the ids.
    """
    start = number = 0
    while start < len(ids):
        end, kind = start + 1, int(kinds[start])
        while (
            tokenizer.decode(ids[start:end]).endswith(HALF)
            and end < min(len(ids), start + LONGEST_CHARACTER)
            and kinds[end] == kind
        ):
            end += 1
        first = start == 0 or kinds[start - 1] != kind
        last = end == len(ids) or kinds[end] != kind
        yield Piece(tokenizer.decode(ids[start:end]), ids[start:end], kind, start, number, first, last)
        start, number = end, number + 1


def terminal_text(found: Iterable[Piece], coloured: bool) -> Text:
    """In colours, or with BRACKETS."""
    from rich.text import Text

    text = Text()
    for piece in found:
        if coloured:
            text.append(piece.text, style=STYLES[piece.kind][piece.number % 2])
        else:
            before, after = BRACKETS[piece.kind]
            text.append(before * piece.first + piece.text + after * piece.last)
    return text


def page_tokens(found: Iterable[Piece], more: Callable[[Piece], str] = lambda piece: "") -> str:
    """As the contents of a `pre`.

    Args:
        found: the pieces.
        more: what a piece tells beside its numbers when the pointer rests on it.
    """
    return "".join(_page_token(piece, more(piece)) for piece in found)


def _page_token(piece: Piece, more: str) -> str:
    text = html.escape(piece.text).replace("\n", "<i>↵</i>\n")
    title = html.escape("token " + " ".join(map(str, piece.ids)) + more)
    name, kind = ("span", "") if piece.kind == GIVEN else ("mark", " class=forced" * (piece.kind == FORCED))
    return f'<{name}{kind} title="{title}">{text}</{name}>'


def write_page(path: Path, title: str, introduction: str, body: str, style: str = "") -> None:
    """One HTML page, in the reader's choice of light and dark.

    Args:
        path: the file.
        title: as text.
        introduction, body: as HTML.
        style: further CSS.
    """
    parts = {"title": html.escape(title), "style": style, "introduction": introduction, "body": body}
    write_atomic(path, _PAGE.substitute(parts))


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #6b7280; --page: #fff; --line: #e5e7eb;
  --mark: #bbf7d0; --edge: #15803d; --forced: #fed7aa; --forced-edge: #c2410c; --warning: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --muted: #9ca3af; --page: #14171a; --line: #30363d;
  --mark: #14532d; --edge: #4ade80; --forced: #7c2d12; --forced-edge: #fb923c; --warning: #fbbf24; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h3 { font-size: .9rem; color: var(--muted); margin: 0 0 .5rem; font-weight: 600; }
section { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace; margin: 0; }
pre span, mark { border-right: 1px solid var(--line); }
mark { background: var(--mark); color: inherit; border-color: var(--edge); }
mark.forced { background: var(--forced); border-color: var(--forced-edge); }
i { font-style: normal; color: var(--muted); }
.out { color: var(--warning); }
$style</style></head><body>
<h1>$title</h1>
$introduction
$body
</body></html>
""")
