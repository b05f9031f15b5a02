"""What became of saved rollouts that were measured again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.cli.output import plain_table, print_json, print_table, results
from nano3.cli.rollouts.tables import number
from nano3.rl.environments.registry import Source
from nano3.rl.saved.rescore import CHANGED, FAULT, Counts, Rescored, differences

EXAMPLES = 3
"""Changed samples and faults that are shown of each environment."""


@dataclass
class Report:
    """What became of an environment's samples."""

    today: Source
    counts: Counts = field(default_factory=Counts)
    differences: dict[str, None] = field(default_factory=dict)
    """Of the code, in order of appearance."""
    examples: list[Rescored] = field(default_factory=list)
    """Of rewards that changed, and of faults: EXAMPLES of each."""

    def add(self, one: Rescored) -> None:
        """Take in a sample."""
        self.counts.add(one)
        self.differences |= dict.fromkeys(differences(one.saved.source, self.today))
        kept = sum(other.outcome == one.outcome for other in self.examples)
        if one.outcome in (CHANGED, FAULT) and kept < EXAMPLES:
            self.examples.append(one)

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.counts.table(),
            "source": asdict(self.today),
            "code_differs": list(self.differences),
            "examples": [line_of(one) for one in self.examples],
        }


def line_of(one: Rescored) -> dict[str, Any]:
    """A sample as JSON values."""
    saved, before, now = one.saved, one.saved.reward, one.reward
    return {
        "step": saved.step, "environment": saved.environment, "task": saved.task, "sample": saved.index,
        "outcome": one.outcome,
        "before": None if before is None else before.value, "now": None if now is None else now.value,
        "passed_before": bool(before and before.passed), "passed_now": bool(now and now.passed),
        "parts": {} if now is None else dict(now.parts), "fault": one.fault, "fault_message": one.message,
    }  # fmt: skip


def show_reports(run: Path, reports: Mapping[str, Report], as_json: bool) -> None:
    """Print what became of the samples, by environment."""
    from rich.markup import escape

    if as_json:
        return print_json({"run": str(run), "environments": {name: one.values() for name, one in reports.items()}})
    console = results()
    heads = ("environment", "samples", "equal", "changed", "faults", "new", "reward then", "now")
    table = plain_table(f"Rollouts of {run}, measured again", *heads, right=heads[1:])
    for name, report in reports.items():
        row = report.counts.table()
        counts = [f"{row[key]:,}" for key in ("samples", "equal", "changed", "fault", "new")]
        table.add_row(escape(name), *counts, number(row["reward_before"]), number(row["reward_now"]))
    print_table(console, table)
    for name, report in reports.items():
        words = ", ".join(report.differences) or "the same code and libraries as then"
        console.print(f"{name}: {words}", markup=False)
        for one in report.examples:
            console.print(f"  {_example(one)}", markup=False, style="yellow" if one.outcome == "changed" else "red")
    if any(report.counts.outcomes["new"] for report in reports.values()):
        print("new: samples that had no reward, for a fault", file=sys.stderr)
    return None


def _example(one: Rescored) -> str:
    saved, now = one.saved, one.reward
    place = f"step {saved.step} · {saved.task} · sample {saved.index}"
    if now is None:
        return f"{place}: no reward any more: {one.fault} ({one.message})"
    assert saved.reward is not None, "it has changed"
    values = f"{saved.reward.value:g} -> {now.value:g}"
    if saved.reward.value == now.value:
        values = f"{values}, {'now' if now.passed else 'no longer'} counted as solved"
    return f"{place}: reward {values}{f', parts {dict(now.parts)}' if now.parts else ''}"
