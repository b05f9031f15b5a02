"""What a finished `nano3 sft` prints on stdout."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import count_text, folder_rows, plain_table, print_json, print_table, results, speed_text


def show_sft_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the result, as tables or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    console.print()
    if summary["data"]:
        print_table(console, _data_table(summary))
    if summary["answers"]:
        print_table(console, _answer_table(summary))
    print_table(console, _run_table(verb, summary))


def _data_table(summary: dict[str, Any]) -> Any:
    table = plain_table("Data", "", "rows", "tokens", "epochs", "left out", right=("rows", "tokens", "epochs"))
    for row in summary["data"]:
        left = ", ".join(f"{n:,} {reason}" for reason, n in row["rejected"].items())
        table.add_row(
            row["name"], f"{row['rows']:,}", count_text(row["tokens"]), f"{row['epochs']:.2f}", left or "nothing"
        )
    return table


def _answer_table(summary: dict[str, Any]) -> Any:
    table = plain_table("Held-out tasks solved, greedy", "", "solved", "tasks", "by level", right=("solved", "tasks"))
    for name, score in summary["answers"].items():
        levels = ", ".join(f"{level}: {rate:.0%}" for level, rate in score["by_level"].items())
        table.add_row(name, f"{score['solved']:.0%}", str(score["tasks"]), levels)
    return table


def _run_table(verb: str, summary: dict[str, Any]) -> Any:
    table = plain_table("Stopped early" if summary["interrupted"] else "Run", "", "")
    table.add_row("tokens", f"{summary['tokens']:,} in {summary['steps']:,} steps{speed_text(summary)}")
    if summary["heldout_loss"] is not None and summary["heldout_tokens"]:
        loss = f"{summary['heldout_loss']:.3f} nats a token ({summary['heldout_tokens']:,} tokens)"
        table.add_row("held-out loss", loss)
    folder_rows(table, verb, summary, summary["interrupted"])
    return table
