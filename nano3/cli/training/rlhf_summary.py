"""What a finished `nano3 rlhf` prints on stdout."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import plain_table, print_json, print_table, results
from nano3.cli.training.policy_summary import run_table

MEASURES = {
    "quality": "quality, 1 to 5", "think_tokens": "thinking tokens", "answer_tokens": "answer tokens",
    "truncated": "cut off at their limit",
}  # fmt: skip
FIGURES = {
    "reward": "reward", "quality": "judge's score", "think_tokens": "thinking tokens", "final_tokens": "answer tokens",
    "truncated": "cut off at their limit", "unread": "judgements that cannot be read", "entropy": "entropy, nats",
    "policy_loss": "policy loss",
}  # fmt: skip
"""Of the rollouts, the loss last: it says least."""


def show_rlhf_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the result of a run, as tables or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    console.print()
    if summary["rollouts"]["figures"]:
        print_table(console, _rollouts_table(summary["rollouts"]))
    if summary["heldout"]:
        print_table(console, _heldout_table(summary))
    print_table(console, run_table(verb, summary))


def _rollouts_table(rollouts: dict[str, Any]) -> Any:
    n = rollouts["steps"]
    columns = ("first step", "last step") if n == 1 else (f"first {n} steps", f"last {n} steps")
    table = plain_table("Rollouts", "", *columns, right=columns)
    for name, words in FIGURES.items():
        if name in rollouts["figures"]:
            table.add_row(words, *(f"{value:.3f}" for value in rollouts["figures"][name]))
    table.add_row("comparisons by the judge", "", f"{rollouts['judge_calls']:,} in all")
    return table


def _heldout_table(summary: dict[str, Any]) -> Any:
    columns = ("before", "after", "difference, 95 %", "prompts")
    title = f"Held-out prompts, judged by {summary['heldout_judge']}"
    table = plain_table(title, "", "", *columns, "", right=columns)
    for row in summary["heldout"]:
        if row["measure"] == "truncated" and not (row["before"] or row["after"]):
            continue
        digits = ".1f" if row["measure"].endswith("tokens") else ".3f"
        values = f"{row['before']:{digits}}", f"{row['after']:{digits}}"
        ends = f"{row['low']:+{digits}} to {row['high']:+{digits}}"
        difference = f"{row['after'] - row['before']:+{digits}} ({ends})"
        words = MEASURES[row["measure"]]
        table.add_row(row["environment"], words, *values, difference, f"{row['tasks']:,}", row["verdict"])
    return table
