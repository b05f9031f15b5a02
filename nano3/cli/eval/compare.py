"""`nano3 eval compare`: results of several stages side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nano3.cli.options.common import Json
from nano3.config.errors import UserError
from nano3.files import check_writable

if TYPE_CHECKING:
    from nano3.eval.compare import Cell, Row, Stage

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Result folders, folders that hold some, or training runs; LABEL=PATH names one. The first is what the "
        "others are compared with.", metavar="RUN",
    ),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option(help="Also draw a chart, into this PNG file.", metavar="FILE", dir_okay=False, show_default=False),
]
Seed = Annotated[int, typer.Option(help="Decides the bootstrap's draws. Default: 0.", metavar="N", show_default=False)]


def compare(runs: Runs, out: Out = None, seed: Seed = 0, as_json: Json = False) -> None:
    """Show the results of several stages side by side.

    With 95 % intervals (bootstrap over samples) and differences from the first stage.

    [dim]Before and after long-context training:[/]
      nano3 eval compare before=runs/a after=runs/b --out compare.png
    """
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give the name of a PNG file")
    if out is not None:
        check_writable(out.parent, "--out")
    from nano3.eval import compare as comparing

    stages = [comparing.load_stage(run) for run in runs]
    _tell_apart(stages)
    rows = comparing.compare(stages, seed)
    if out is not None:
        from nano3.eval.compare_chart import draw

        print(f"wrote {draw(stages, rows, out)}", file=sys.stderr)
    if as_json:
        from nano3.cli.output import print_json

        return print_json(comparing.document(stages, rows))
    for note in comparing.notes(stages):
        print(f"note: {note}", file=sys.stderr)
    _show(stages, rows)


def _tell_apart(stages: list[Stage]) -> None:
    """Number stages that have one name."""
    seen: dict[str, int] = {}
    for stage in stages:
        seen[stage.label] = seen.get(stage.label, 0) + 1
        if seen[stage.label] > 1:
            stage.label = f"{stage.label} ({seen[stage.label]})"


def _show(stages: list[Stage], rows: list[Row]) -> None:
    from nano3.cli.output import plain_table, print_table, results
    from nano3.eval.ruler.run import length_text

    labels = tuple(stage.label for stage in stages)
    with_length = any(row.key.length is not None for row in rows)
    heads = ("", "length") if with_length else ("",)
    table = plain_table("Value (95 % interval), difference from the first", *heads, *labels, right=("length", *labels))
    before = None
    for row in rows:
        key = row.key
        if before is not None and before != key.kind:
            table.add_section()
        before = key.kind
        length = "" if key.length is None else length_text(key.length)
        name = key.task if key.kind == "ruler" else f"{key.task}, {key.metric}"
        places = (name, length) if with_length else (name,)
        table.add_row(*places, *(_cell(cell) for cell in row.cells))
    print_table(results(), table)
    if any(cell is not None and cell.differs for row in rows for cell in row.cells):
        results().print("* the 95 % interval of the difference leaves out 0", style="dim")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    digits = 1 if abs(cell.value) >= 10 or cell.value == 0 else 3
    text = f"{cell.value:.{digits}f}"
    if cell.low is not None and cell.high is not None:
        text += f" ({_rounded(cell.low, digits - 1)}-{_rounded(cell.high, digits - 1)})"
    if cell.change is not None:
        text += f" {_rounded(cell.change, digits, '+')}" + ("*" if cell.differs else "")
    return text


def _rounded(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: never -0
