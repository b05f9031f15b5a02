"""`nano3 sft preview`: rows as the model reads them, with the tokens that it is trained to write highlighted."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nano3.cli.output import results
from nano3.cli.training.marked_tokens import STYLES, WRITTEN, Piece, page_tokens, pieces, terminal_text, write_page
from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import RowError
from nano3.data.chat.maker import MadeRow, RowMaker
from nano3.data.chat.rows import row_name
from nano3.data.chat.sets import set_records, set_sources
from nano3.data.texts.readers import Skipped
from nano3.data.tokens.tokenizer import Tokenizer


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
            text = terminal_text(_pieces(row, tokenizer), coloured)
            console.print(text, soft_wrap=not coloured)
        if shown.left_out:
            console.print(Text(f"\n{shown.name}: {shown.left_out}", style="yellow"))
    if not any(shown.rows for shown in found):
        return
    if coloured:
        console.print(Text.assemble("\n", ("trained", STYLES[WRITTEN][0]), " to be written; the rest is read."))
    else:
        console.print("\n«trained» to be written; the rest is read.")


def show_on_page(found: list[Shown], tokenizer: Tokenizer, path: Path) -> None:
    """Write the rows as one HTML page that needs nothing else."""
    body = []
    for shown in found:
        body.append(f"<h2>{html.escape(shown.name)}</h2>")
        if shown.left_out:
            body.append(f"<p class=out>{html.escape(shown.left_out)}</p>")
        for row in shown.rows:
            tokens = page_tokens(_pieces(row, tokenizer))
            body.append(f"<section><h3>{html.escape(_title(shown, row))}</h3><pre>{tokens}</pre></section>")
    write_page(path, "Rows of nano3 sft", _INTRODUCTION, "\n".join(body))


def _pieces(row: MadeRow, tokenizer: Tokenizer) -> Iterator[Piece]:
    return pieces(row.encoded.ids.tolist(), row.encoded.trained.tolist(), tokenizer)


def _title(shown: Shown, row: MadeRow) -> str:
    encoded = row.encoded
    name = row_name(encoded.label, encoded.record, encoded.turn)
    parts = [shown.name, name, f"{encoded.places:,} tokens, {int(encoded.trained[1:].sum()):,} trained"]
    parts += [f"reasoning {row.turn.reasoning}"] if row.turn.reasoning else []
    parts += ["held out"] if row.heldout else []
    parts += ["cut to data.pack_length"] if row.cut else []
    return " · ".join(parts)


_INTRODUCTION = """<p>What the model reads, token by token. It is trained to write the tokens that are
<mark>marked</mark>. A token's number shows when the pointer rests on it.</p>"""
