"""What a finished `nano3 rlvr` or `nano3 rlvr profile` prints on stdout."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import plain_table, print_json, print_table, results
from nano3.cli.training.policy_summary import run_table


def show_rlvr_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the result of a run, as tables or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    console.print()
    if summary["heldout"]:
        print_table(console, _heldout_table(summary))
    print_table(console, run_table(verb, summary))


def show_profile(summary: dict[str, Any], as_json: bool) -> None:
    """Print measured pass rates, as a table or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    columns = ("tasks", "pass rate", "never pass", "always pass")
    table = plain_table("Pass rates before training", "", *columns, "", right=columns)
    for row in summary["profile"]:
        shares = [f"{row[name]:.0%}" for name in ("mean", "never", "always")]
        table.add_row(row["environment"], f"{row['tasks']:,}", *shares, row["verdict"])
    print_table(console, table)
    for kind, n in summary["faults"].items():
        console.print(f"{n:,} tasks could not be measured: {kind}", markup=False)
    console.print(f"Use it: nano3 rlvr --set curriculum.profile={summary['file']}", markup=False)


def _heldout_table(summary: dict[str, Any]) -> Any:
    columns = ("before", "after", "difference, 95 %", "tasks")
    table = plain_table("Held-out tasks, mean reward", "", *columns, "", right=columns)
    for row in summary["heldout"]:
        difference = f"{row['after'] - row['before']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        values = f"{row['before']:.3f}", f"{row['after']:.3f}", difference, f"{row['tasks']:,}"
        table.add_row(row["environment"], *values, row["verdict"])
    return table
