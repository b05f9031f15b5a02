"""What `nano3 data curate` and `nano3 data report` print of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nano3.curate.ledger import Size
    from nano3.curate.report import Report

EXIT_UNBALANCED = 1
LEAST_STEP, MARGIN = 20, 3
"""Columns of the terminal: what names of steps get at the least, and what stands between two columns of the table."""


def show_report(found: Report, as_json: bool, samples: int) -> None:
    """Print a report, as JSON or as a table with some samples of each reason.

    Raises:
        typer.Exit: its books do not balance.
    """
    from nano3.cli.output import print_json

    if as_json:
        print_json(found.to_json())
    else:
        print_report(found, samples)
    faults = found.faults()
    for fault in faults:
        print(f"error: the books do not balance: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(EXIT_UNBALANCED)


def print_report(found: Report, samples: int) -> None:
    """Print the table, the notes of the steps, `samples` of each reason, and what to do next."""
    from rich.markup import escape

    from nano3.cli.output import plain_table, print_table, results

    console = results()
    numbers = ("documents", "bytes", found.token_unit, "share")
    table = plain_table(f"{found.manifest.name}: {found.out}", "step", *numbers, right=numbers)
    rows = list(_rows(found))
    widths = [max(map(len, cells)) for cells in zip(numbers, *(row[1:] for row in rows), strict=True)]
    room = max(LEAST_STEP, console.width - sum(widths) - MARGIN * len(table.columns))
    for column, width in zip(table.columns[1:], widths, strict=True):  # a narrow terminal folds names, never numbers
        column.no_wrap, column.min_width = True, width
    table.columns[0].no_wrap, table.columns[0].max_width = False, room
    for name, *cells in rows:
        table.add_row(escape(_cut(name, room)), *cells)
    print_table(console, table)
    for step in found.steps:
        if step.account.notes:
            notes = ", ".join(f"{n:,} {what}" for what, n in sorted(step.account.notes.items()))
            print(f"{step.label}: {notes}")
    for label, (share, published) in found.shares().items():
        print(
            f"{label}: dropped {share:.1%} of {found.token_unit}; Nemotron 3 Nano's report: {published:.1%} of tokens"
        )
    _print_samples(found, samples)
    if found.finished:
        _print_next(found)
    else:
        done = sum(step.tasks for step in found.steps)
        state = "running" if found.running else "ended before it was done: give the same command again to go on"
        print(f"{done} of {found.manifest.tasks * len(found.steps)} parts of steps done; {state}")


def _rows(found: Report) -> Iterator[list[str]]:
    """What was read, and of each step what it dropped, by reason, and what was left; of one not reached `not yet`."""
    yield ["read", *_cells(found.entered, found.entered)]
    for step in found.steps:
        for reason, dropped in sorted(step.account.dropped.items()):
            yield [f"  - {step.label}: {printable(reason)}", *_cells(dropped.size, found.entered)]
        if not step.tasks:
            yield [f"after {step.label}", "not yet", "", "", ""]
            continue
        part = "" if step.tasks >= found.manifest.tasks else f" ({step.tasks} of {found.manifest.tasks} tasks)"
        yield [f"after {step.label}{part}", *_cells(step.account.left, found.entered)]


def _cut(name: str, room: int) -> str:
    """A row's name on one line, its end left out where it is longer; in a very narrow terminal it is folded instead."""
    return name if len(name) <= room or room == LEAST_STEP else f"{name[: room - 1]}…"


def _cells(size: Size, whole: Size) -> list[str]:
    share = f"{size.documents / whole.documents:.1%}" if whole.documents else "-"
    return [f"{size.documents:,}", f"{size.bytes:,}", f"{size.tokens:,}", share]


def _print_samples(found: Report, most: int) -> None:
    from nano3.curate.report import kept_samples

    shown: dict[tuple[str, str], int] = {}
    for label, reason, sample in found.samples():
        shown[label, reason] = shown.get((label, reason), 0) + 1
        if shown[label, reason] <= most:
            said = f"\n──── the reply ────\n{sample.reply}" if sample.reply else ""
            like = f" ({sample.similarity:.0%} alike)" if sample.similarity < 1 else ""
            origin = f"copy of {sample.copy_of}{like}\n" if sample.copy_of else ""
            print(printable(f"\n──── {label} · {reason} · {sample.id} ────\n{origin}{sample.text}{said}"))
    for name, text in kept_samples(found, most):
        print(printable(f"\n──── kept · {name} ────\n{text}"))


def printable(text: str) -> str:
    """A text of anybody's without what a terminal obeys: control characters are shown as escapes."""
    import re

    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _print_next(found: Report) -> None:
    """The command that takes the result on: another pipeline, or the training that its kind is for."""
    from nano3.data.texts.find import CONVERSATIONS

    pipeline: Any = found.manifest.settings["pipeline"]
    if not found.result.documents:
        print("nothing is left: see the reasons above, and --samples of `nano3 data report`")
        return
    for name in pipeline.get("next", []):  # a run of an older nano3 has no such key
        print(f"next: nano3 data curate {name} --from {found.out} --url URL")
    if pipeline.get("next"):
        return
    if CONVERSATIONS in found.manifest.labels:
        print(f"train on it: nano3 sft --data {found.out}")
        return
    print(f"train on it: nano3 pretrain --data {found.out}")
    print(f"in a blend: --set data.sources_file={found.out}/blend.toml --set data.blend.{pipeline['category']}=SHARE")
