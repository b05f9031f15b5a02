"""`nano3 bench compare`: two measurements side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options.common import Json
from nano3.cli.output import plain_table, print_json, print_table, results

HELP = "result.json of a measurement, or the folder of its --out."


def compare(
    before: Annotated[Path, typer.Argument(help=HELP, metavar="BEFORE", show_default=False)],
    after: Annotated[Path, typer.Argument(help=HELP, metavar="AFTER", show_default=False)],
    as_json: Json = False,
) -> None:
    """Two results of a bench: speeds, their ratio, and whether the spreads overlap.

    [dim]Before and after a change:[/]  nano3 bench compare before/ after/
    """
    from nano3.bench import compare as side_by_side

    found = side_by_side.compare(*map(side_by_side.read_result, (before, after)))
    if as_json:
        print_json(found)
        return
    for line in found["differences"]:
        print(f"differs: {line}", file=sys.stderr)
    columns = ("case", "side", "before", "after", "ratio", "")
    unit = "calls/s" if found["kind"] == "kernels" else "tokens/s"
    table = plain_table(f"bench {found['kind']}, {unit}", *columns, right=("before", "after", "ratio"))
    for row in found["rows"]:
        speeds = (f"{s['median']:,.1f} ({s['min']:,.1f} - {s['max']:,.1f})" for s in (row["before"], row["after"]))
        ratio = "{median:.2f} ({min:.2f} - {max:.2f})".format(**row["ratio"])
        table.add_row(row["case"], row["side"], *speeds, ratio, row["verdict"])
    print_table(results(), table)
