"""`nano3 bench scaling`: how time and memory grow."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nano3.cli.bench.compute import progress, settings
from nano3.cli.bench.options import Output, PeersOrFile, Repeat, TinySetting, names, out_option, token_count
from nano3.cli.options.groups import grouped
from nano3.config.errors import UserError
from nano3.files import check_free, check_writable

if TYPE_CHECKING:
    from nano3.bench.scaling.measure import Work


@dataclass(frozen=True)
class FewRuns(TinySetting):
    """The model, and few runs: there are many points."""

    repeat: Repeat = 3


@dataclass(frozen=True)
class ChartOutput(Output):
    """Where the result goes."""

    out: Annotated[Path | None, out_option("result.json and scaling.png")] = None


@grouped
def scaling(
    setting: FewRuns,
    work: Annotated[str, typer.Option(help="train, forward or decode.", metavar="NAME")] = "train",
    axis: Annotated[str, typer.Option(help="What to change, one after the other.", metavar="NAME,NAME")] = (
        "length,batch,experts"
    ),
    seq_len: Annotated[str, typer.Option(help="Lengths of sequences, or of prompts.", metavar="N,N")] = (
        "512,1k,2k,4k"
    ),
    batch: Annotated[str, typer.Option(help="Numbers of sequences.", metavar="N,N")] = "1,2,4,8",
    experts: Annotated[str, typer.Option(help="Numbers of experts of a block.", metavar="N,N")] = "8,16,32,64",
    *,
    peers: PeersOrFile,
    output: ChartOutput,
) -> None:
    """How time and memory grow with length, batch and experts: a table and a chart.

    One thing changes at a time; the others stay at the smallest of theirs, experts at the model's own number.

    [dim]By length, beside transformers:[/]  nano3 bench scaling --axis length --against transformers
    """
    from nano3.bench.scaling.measure import Grid, measure_grid

    counts = [_numbers(*each) for each in (("--seq-len", seq_len), ("--batch", batch), ("--experts", experts))]
    grid = Grid(cast("Work", work), *counts, axes=names(axis))
    if output.out is not None:
        check_free(output.out)
        check_writable(output.out, "--out")
    from nano3.bench.compute import Plan
    from nano3.cli.hardware import detect

    kind = "decode" if work == "decode" else "train"
    plan = Plan(kind, (), **settings(setting, peers))
    with progress() as say:
        found = measure_grid(plan, grid, detect().cpu, say)
    from nano3.bench.scaling.report import write

    for path in write(found, output.out) if output.out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(found, output.as_json)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(token_count(part) for part in text.split(","))
    except typer.BadParameter:
        raise UserError(f"{option} {text}: not a list of whole numbers such as 512,1k,2k") from None


def _show(found: dict[str, Any], as_json: bool) -> None:
    from nano3.bench.compute_chart import threads_text
    from nano3.bench.compute_report import failures
    from nano3.bench.scaling.report import TITLES, axes, growth_lines, rows
    from nano3.cli.output import plain_table, print_json, print_table, results

    if as_json:
        return print_json(found)
    console, machine, ours = results(), found["machine"], found["sides"]["nano3"]
    facts = plain_table(f"scaling, {found['work']}, {found['model']}", "", "")
    facts.add_row("machine", f"{machine['cpu']}, {threads_text(machine['threads'])}, torch {machine['torch']}")
    facts.add_row("weights, activations", f"{ours['weights']}, {ours['activations']}")
    fixed, several = found["fixed"], "s" * (found["fixed"]["batch"] > 1)
    facts.add_row("where it is not changed", f"{fixed['length']:,} tokens, {fixed['batch']} sequence{several}")
    print_table(console, facts)
    columns = ("ms", "x", "tokens/s", "peak memory", "x ")
    for axis in axes(found):
        table = plain_table(f"By {TITLES[axis]} (x: times the first)", axis, "", *columns, right=(axis, *columns))
        for row in rows(found, axis):
            table.add_row(*row)
        print_table(console, table)
    for line in [*growth_lines(found), *failures(found)]:
        console.print(line, markup=False)
