"""`nano3 sft preview`: rows as the model reads them, with the tokens that it is trained to write highlighted."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nano3.cli.output import results
from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import RowError
from nano3.data.chat.maker import MadeRow, RowMaker
from nano3.data.chat.rows import row_name
from nano3.data.chat.sets import set_records, set_sources
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import write_atomic

HALF = "\ufffd"
LONGEST_CHARACTER = 4
"""Tokens that one character is made of at most."""
TRAINED = ("black on green3", "black on spring_green2")
"""Styles of trained tokens by turns, so that their ends can be seen."""


@dataclass
class Shown:
    """The first rows of a data set."""

    name: str
    rows: list[MadeRow] = field(default_factory=list)
    records: int = 0
    """Records read for them."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Records and rows left out on the way, by reason."""
    first_problem: str = ""

    @property
    def left_out(self) -> str:
        """What was left out and why; empty for nothing."""
        if not self.rejected:
            return ""
        counts = ", ".join(f"{n} {reason}" for reason, n in self.rejected.most_common())
        return f"left out of the first {self.records:,} records: {counts}; the first: {self.first_problem}"


def collect(cfg: SftConfig, tokenizer: Tokenizer, count: int) -> list[Shown]:
    """The first `count` rows of each data set of the blend. Raises as nano3.data.chat.sets.set_records."""
    maker = RowMaker(cfg, tokenizer)
    found = []
    for name, specs in set_sources(cfg.data).items():
        shown = Shown(name)

        def refuse(row: str, error: RowError, shown: Shown = shown) -> None:
            shown.rejected[error.reason] += 1
            shown.first_problem = shown.first_problem or f"{row}: {error}"

        for record in set_records(specs, cfg.data, Skipped()):
            shown.records += 1
            shown.rows += maker.rows(record, refuse)
            if len(shown.rows) >= count:
                break
        del shown.rows[count:]
        found.append(shown)
    return found


def show(found: list[Shown], tokenizer: Tokenizer) -> None:
    """Print the rows; without colours what is trained stands between guillemets."""
    from rich.text import Text

    console = results()
    coloured = console.color_system is not None
    for shown in found:
        for row in shown.rows:
            console.print()
            console.print(Text(_title(shown, row), style="bold"))
            text = Text()
            for piece in _runs(row, tokenizer):
                if coloured:
                    text.append(piece.text, style=TRAINED[piece.number % 2] if piece.trained else "dim")
                else:
                    before, after = "«" * piece.first, "»" * piece.last
                    text.append(before + piece.text + after)
            console.print(text, soft_wrap=not coloured)
        if shown.left_out:
            console.print(Text(f"\n{shown.name}: {shown.left_out}", style="yellow"))
    if coloured:
        console.print(Text.assemble("\n", ("trained", TRAINED[0]), " to be written; the rest is read."))
    else:
        console.print("\n«trained» to be written; the rest is read.")


def write_page(found: list[Shown], tokenizer: Tokenizer, path: Path) -> None:
    """Write the rows as one HTML page that needs nothing else."""
    body = []
    for shown in found:
        body.append(f"<h2>{html.escape(shown.name)}</h2>")
        if shown.left_out:
            body.append(f"<p class=out>{html.escape(shown.left_out)}</p>")
        for row in shown.rows:
            tokens = "".join(_token(piece) for piece in _runs(row, tokenizer))
            body.append(f"<section><h3>{html.escape(_title(shown, row))}</h3><pre>{tokens}</pre></section>")
    write_atomic(path, _PAGE.replace("BODY", "\n".join(body)))


@dataclass(frozen=True)
class _Piece:
    """A token, or the few that one character is made of."""

    text: str
    ids: list[int]
    trained: bool
    number: int
    first: bool
    """It begins a stretch that is trained."""
    last: bool
    """It ends one."""


def _runs(row: MadeRow, tokenizer: Tokenizer) -> Iterator[_Piece]:
    ids, trained = row.encoded.ids.tolist(), row.encoded.trained.tolist()
    start = number = 0
    while start < len(ids):
        end = start + 1
        while (
            tokenizer.decode(ids[start:end]).endswith(HALF)
            and end < min(len(ids), start + LONGEST_CHARACTER)
            and trained[end] == trained[start]
        ):
            end += 1
        is_trained = trained[start]
        first = is_trained and (start == 0 or not trained[start - 1])
        last = is_trained and (end == len(ids) or not trained[end])
        yield _Piece(tokenizer.decode(ids[start:end]), ids[start:end], is_trained, number, first, last)
        start, number = end, number + 1


def _title(shown: Shown, row: MadeRow) -> str:
    encoded = row.encoded
    name = row_name(encoded.label, encoded.record, encoded.turn)
    parts = [shown.name, name, f"{encoded.places:,} tokens, {int(encoded.trained[1:].sum()):,} trained"]
    parts += [f"reasoning {row.turn.reasoning}"] if row.turn.reasoning else []
    parts += ["held out"] if row.heldout else []
    parts += ["cut to data.pack_length"] if row.cut else []
    return " · ".join(parts)


def _token(piece: _Piece) -> str:
    text = html.escape(piece.text).replace("\n", "<i>↵</i>\n")
    title = "token " + " ".join(map(str, piece.ids))
    tag = "mark" if piece.trained else "span"
    return f'<{tag} title="{title}">{text}</{tag}>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Rows of nano3 sft</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #6b7280; --page: #fff; --line: #e5e7eb;
  --mark: #bbf7d0; --edge: #15803d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --muted: #9ca3af; --page: #14171a; --line: #30363d;
  --mark: #14532d; --edge: #4ade80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h3 { font-size: .9rem; color: var(--muted); margin: 0 0 .5rem; font-weight: 600; }
section { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace; margin: 0; }
pre span, mark { border-right: 1px solid var(--line); }
mark { background: var(--mark); color: inherit; border-color: var(--edge); }
i { font-style: normal; color: var(--muted); }
.out { color: #b45309; }
</style></head><body>
<h1>Rows of nano3 sft</h1>
<p>What the model reads, token by token. It is trained to write the tokens that are <mark>marked</mark>.
A token's number shows when the pointer rests on it.</p>
BODY
</body></html>
"""
