"""`nano3 runs`: what training runs there are and how they went, and runs beside each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nano3.cli.options.common import HELP, Json
from nano3.cli.training.run_folder import RUNS
from nano3.config.errors import UserError
from nano3.files import check_writable

if TYPE_CHECKING:
    from rich.table import Table

    from nano3.train.tracking.run_comparison import Curves
    from nano3.train.tracking.runs import Run

HELPS = ("-h", "--help")
LEAST_TELLING = ("preset", "changed", "steps", "time", "loss", "verb", "reward")
"""Columns of the list in the order in which they are left out where the terminal is narrow."""
REWARDS = ("reward", "pass_rate", "zero_variance", "truncated", "entropy")
FEEDBACK = ("quality", "think_tokens", "final_tokens")
"""What runs that are trained on rewards are compared by; FEEDBACK where a judge gave them."""
WIDEST = 10_000
"""Characters of a line that holds any table."""
STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "damaged": "red"}


class ListGroup(TyperGroup):
    """A group whose `list` needs no name: `nano3 runs FOLDER` is `nano3 runs list FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before what is no verb of the group."""
        if not args or (args[0] not in self.commands and args[0] not in HELPS):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ListGroup, rich_markup_mode="rich", context_settings=HELP)


@app.callback()
def runs() -> None:
    """Training runs of a folder, and runs beside each other.

    [dim]All of runs/, the newest first:[/]
      nano3 runs

    [dim]Another folder, or one run:[/]
      nano3 runs FOLDER

    [dim]The curves of two runs in one chart:[/]
      nano3 runs compare runs/a runs/b --out curves.png
    """


@app.command("list")
def list_(
    folder: Annotated[
        Path, typer.Argument(help="Folder of runs, or one run. Default: runs.", metavar="FOLDER", show_default=False)
    ] = RUNS,
    as_json: Json = False,
) -> None:
    """List the runs of a folder (the default: `nano3 runs [FOLDER]`)."""
    from nano3.train.tracking.runs import find_runs

    found = find_runs(folder)
    if as_json:
        from nano3.cli.output import print_json

        return print_json({"folder": str(folder), "runs": [run.table() for run in found]})
    if not found:
        print(f"{folder} holds no runs; nano3 pretrain makes one", file=sys.stderr)
        return None
    return _show(folder, found)


@app.command()
def compare(
    paths: Annotated[
        list[str], typer.Argument(help="Run folders; LABEL=FOLDER gives one a name.", metavar="RUN RUN...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also draw their curves, into this PNG file.", metavar="FILE", dir_okay=False, show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the final figures of runs side by side, and draw their curves over each other."""
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give the name of a PNG file")
    if out is not None:
        check_writable(out.parent, "--out")
    if len(paths) < 2:
        raise UserError("give two runs or more to compare")
    from nano3.train.tracking.run_comparison import different_texts, draw, read_curves

    found = read_curves(paths)
    if note := different_texts(found):
        print(f"note: {note}", file=sys.stderr)
    if out is not None:
        print(f"wrote {draw(found, out)}", file=sys.stderr)
    if as_json:
        from nano3.cli.output import print_json

        return print_json({"runs": [curves.table() for curves in found]})
    return _show_comparison(found)


def _show(folder: Path, found: list[Run]) -> None:
    from nano3.cli.output import print_table, results

    console, rows = results(), [_row(run) for run in found]
    # A column that is empty tells nothing; of the others the least telling go where the terminal is narrow.
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    title, left_out = f"Runs in {folder}", []
    unbounded = console.options.update_width(WIDEST)
    for name in LEAST_TELLING:
        if name in columns and console.measure(_table(title, columns, rows), options=unbounded).maximum > console.width:
            columns.remove(name)
            left_out.append(name)
    print_table(console, _table(title, columns, rows))
    if left_out:
        console.print(f"left out for want of width: {', '.join(left_out)}; --json has all", style="dim")
    if any(run.scores and not run.scores[0].final for run in found):
        results().print("~ scored on a sample, while the run went on", style="dim")
    for run in found:
        if run.trouble:
            print(f"{run.path}: {run.trouble}", file=sys.stderr)


def _row(run: Run) -> dict[str, str]:
    return {
        "run": run.path.resolve().name,
        "verb": run.verb,
        "preset": run.preset or "",
        "state": f"[{STYLES[run.state]}]{run.state}[/]",
        "steps": f"{run.step:,}",
        "tokens": _tokens(run),
        "loss": _number(run.loss),
        "reward": _number(run.reward),
        "bits/byte": _bits(run),
        "time": _time(run.seconds),
        "changed": f"{run.changed:%d %b %H:%M}" if run.changed else "",
    }


def _table(title: str, columns: list[str], rows: list[dict[str, str]]) -> Table:
    from nano3.cli.output import plain_table

    table = plain_table(title, *columns, right=("steps", "tokens", "loss", "reward", "bits/byte", "time"))
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _tokens(run: Run) -> str:
    from nano3.cli.output import count_text

    done = count_text(run.tokens)
    unfinished = run.planned_tokens is not None and run.tokens < run.planned_tokens
    return f"{done} of {count_text(run.planned_tokens or 0)}" if unfinished else done


def _bits(run: Run) -> str:
    if not run.scores:
        return ""
    return f"{'' if run.scores[0].final else '~'}{run.scores[0].bits_per_byte:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _time(seconds: float | None) -> str:
    from nano3.report import clock

    return "" if seconds is None else clock(seconds)


def _show_comparison(found: list[Curves]) -> None:
    from nano3.cli.output import count_text, plain_table, print_table, results

    rows = [curves.table() for curves in found]
    labels = tuple(row["label"] for row in rows)
    table = plain_table("Runs, at their ends", "", *labels, right=labels)
    rate = [count_text(row["tokens_per_second"]) if row["tokens_per_second"] else "" for row in rows]
    sampled = [row["heldout_final"] is False for row in rows]
    bits = [
        ("~" if part else "") + _number(row["heldout_bits_per_byte"]) for row, part in zip(rows, sampled, strict=True)
    ]
    table.add_row("state", *(row["state"] for row in rows))
    table.add_row("steps", *(f"{row['steps']:,}" for row in rows))
    table.add_row("tokens", *(count_text(row["tokens"]) for row in rows))
    if rows[0]["reward"] is None:
        table.add_row("training loss, smoothed", *(_number(row["train_loss"]) for row in rows))
        table.add_row("held-out loss", *(_number(row["heldout_loss"]) for row in rows))
        table.add_row("held-out bits per byte", *bits)
        table.add_row("held-out tokens scored", *(f"{row['heldout_tokens'] or 0:,}" for row in rows))
    else:
        judged = any(row[name] is not None for row in rows for name in FEEDBACK)
        for name in (*REWARDS, *(FEEDBACK if judged else ())):
            table.add_row(f"{name.replace('_', ' ')}, smoothed", *(_number(row[name]) for row in rows))
    table.add_row("training time", *(_time(row["seconds"]) for row in rows))
    table.add_row("tokens a second", *rate)
    print_table(results(), table)
    if any(sampled):
        results().print("~ scored on a sample, while the run went on", style="dim")
