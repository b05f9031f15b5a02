"""How results look: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 120
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNT_UNITS = ("", "K", "M", "B", "T")


def results() -> Console:
    """The console for results: stdout, in colour and as wide as the terminal where it is one; else COLUMNS or 120."""
    from rich.console import Console

    given = os.environ.get("COLUMNS", "")
    piped = int(given) if given.isdecimal() and int(given) else PIPE_WIDTH
    return Console(highlight=False, width=None if sys.stdout.isatty() else piped)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def plain_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without a frame: a bold title, a line under the column heads, `right` columns set to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.show_header = any(columns)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=i == 0)
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table with its title on a line of its own, which a narrow table would fold."""
    title, table.title = table.title, None
    if title:
        console.print(title, style="bold", markup=False)
    console.print(table)


def bytes_text(n: float) -> str:
    """`n` bytes in the largest fitting unit of 1024: 588.2 GiB."""
    unit = 0
    while n >= 1024 and unit < len(_BYTE_UNITS) - 1:
        n, unit = n / 1024, unit + 1
    return f"{n:.0f} B" if unit == 0 else f"{n:.1f} {_BYTE_UNITS[unit]}"


def count_text(n: float) -> str:
    """A count in words of 1000: 31.6B, 23.5T, 4M, 512."""
    unit = 0
    while n >= 999.5 and unit < len(_COUNT_UNITS) - 1:
        n, unit = n / 1000, unit + 1
    return f"{n:.3g}{_COUNT_UNITS[unit]}"


def value_text(value: Any) -> str:
    """A setting for a table cell: counts with commas, tables as `name share`, `not set` for None."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        shown = [f"{name} {share:g}" for name, share in list(value.items())[:3]]
        return ", ".join(shown) + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def speed_text(summary: dict[str, Any]) -> str:
    """Tokens a second of a training run, to be put behind what it trained on; empty where none were measured."""
    rate = summary["tokens_per_second"]
    return f", {count_text(rate)} tokens a second" if rate else ""


def folder_rows(table: Table, verb: str, summary: dict[str, Any], early: bool, change: str = "") -> None:
    """What a training run left and what to do with it.

    Args:
        table: of two columns, which gets the rows.
        verb: of the run.
        summary: of the run.
        early: it ended before its last step.
        change: options that it needs to go on.
    """
    table.add_row("folder", summary["run"])
    if early:
        table.add_row("continue", f"nano3 {verb} --resume --out {summary['run']}{change}")
        return
    table.add_row("model", f"{summary['model']} (a Hugging Face folder)")
    table.add_row("talk to it", f"nano3 serve --model {summary['run']}")
    table.add_row("charts", f"{summary['run']}/charts")


def counted(n: int, thing: str) -> str:
    """`1 file` or `1,200 files`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
