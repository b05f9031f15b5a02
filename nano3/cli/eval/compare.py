"""`nano3 eval compare`: results of several stages side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nano3.cli.options.common import Json
from nano3.config.errors import UserError
from nano3.files import check_writable

if TYPE_CHECKING:
    from nano3.eval.compare import Row
    from nano3.eval.compare_stage import Stage

FIRST = "first"
SUFFIXES = (".png", ".md")
SIDE_BY_SIDE = 3
"""Most stages whose differences stand beside their values; of more they stand below."""

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Result folders, folders that hold some, or training runs; LABEL=PATH names one. The first is what the "
        "others are compared with.", metavar="RUN",
    ),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option(
        help="Also draw a chart, into this PNG file; a name that ends in .md: a page with the table, and the chart "
        "beside it.", metavar="FILE", dir_okay=False, show_default=False,
    ),
]  # fmt: skip
Baseline = Annotated[
    str,
    typer.Option(
        help="What a stage is compared with: the first, or the previous one. Default: first.", metavar="first|previous",
        show_default=False,
    ),
]  # fmt: skip
Without = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out rows of this name, as the table has it; with wildcards: '*perplexity'. Repeatable.",
        metavar="NAME", show_default=False,
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Decides the bootstrap's draws. Default: 0.", metavar="N", show_default=False)]


def compare(
    runs: Runs, out: Out = None, baseline: Baseline = FIRST, without: Without = None, seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show the results of several stages side by side.

    With 95 % intervals (bootstrap over samples) and differences from the first stage, or each from the one before.

    [dim]Before and after long-context training:[/]
      nano3 eval compare before=runs/a after=runs/b --out compare.png

    [dim]What each stage changed, as a page with table and chart:[/]
      nano3 eval compare runs/a runs/b runs/c --baseline previous --out card.md
    """
    from nano3.eval import compare as comparing
    from nano3.eval.compare_stage import load_stage
    from nano3.eval.compare_text import BASELINES, PREVIOUS

    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: give the name of a PNG file, or of a page that ends in .md")
    if baseline not in BASELINES:
        raise UserError(f"--baseline {baseline}: write {' or '.join(BASELINES)}")
    if out is not None:
        check_writable(out.parent, "--out")
    stages = [load_stage(run) for run in runs]
    _tell_apart(stages)
    rows = _kept(comparing.compare(stages, seed, previous=baseline == PREVIOUS), without or ())
    if out is not None:
        _write(stages, rows, out, baseline)
    if as_json:
        from nano3.cli.output import print_json

        return print_json(comparing.document(stages, rows))
    for note in comparing.notes(stages):
        print(f"note: {note}", file=sys.stderr)
    _show(stages, rows, baseline)


def _tell_apart(stages: list[Stage]) -> None:
    """Number stages that have one name."""
    seen: dict[str, int] = {}
    for stage in stages:
        seen[stage.label] = seen.get(stage.label, 0) + 1
        if seen[stage.label] > 1:
            stage.label = f"{stage.label} ({seen[stage.label]})"


def _kept(rows: list[Row], without: Sequence[str]) -> list[Row]:
    """The rows that are not left out. Raises UserError for a name that fits none, and where none is left."""
    from nano3.eval.compare_text import row_name

    for pattern in without:
        left = [row for row in rows if not fnmatchcase(row_name(row), pattern)]
        if len(left) == len(rows):
            names = ", ".join(dict.fromkeys(row_name(row) for row in rows))
            raise UserError(f"--without {pattern}: no row has that name; there are {names}")
        rows = left
    if not rows:
        raise UserError("--without: no row is left to compare")
    return rows


def _write(stages: list[Stage], rows: list[Row], out: Path, baseline: str) -> None:
    """The chart, and of a page the page beside it."""
    from nano3.eval.compare import notes
    from nano3.eval.compare_chart import draw
    from nano3.eval.compare_text import card
    from nano3.files import write_atomic

    chart = draw(stages, rows, out.with_suffix(".png"))
    print(f"wrote {chart}", file=sys.stderr)
    if out.suffix.lower() != chart.suffix:
        write_atomic(out, card(stages, rows, notes(stages), chart.name, baseline))
        print(f"wrote {out}", file=sys.stderr)


def _show(stages: list[Stage], rows: list[Row], baseline: str) -> None:
    from nano3.cli.output import plain_table, print_table, results
    from nano3.eval.compare_text import BASELINES, STAR, any_differs, cell_text, row_length, row_name

    labels = tuple(stage.label for stage in stages)
    with_length = any(row.key.length is not None for row in rows)
    heads = ("", "length") if with_length else ("",)
    title = f"Value (95 % interval), difference from {BASELINES[baseline]}"
    table = plain_table(title, *heads, *labels, right=("length", *labels))
    between = " " if len(stages) <= SIDE_BY_SIDE else "\n"
    before = None
    for row in rows:
        if before is not None and before != row.key.kind:
            table.add_section()
        before = row.key.kind
        places = (row_name(row), row_length(row)) if with_length else (row_name(row),)
        table.add_row(*places, *(cell_text(cell, between) for cell in row.cells))
    print_table(results(), table)
    if any_differs(rows):
        results().print(STAR, style="dim")
