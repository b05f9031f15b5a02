"""What finished runs of reinforcement learning have in common on stdout and stderr."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import folder_rows, plain_table, speed_text


def run_table(verb: str, summary: dict[str, Any]) -> Any:
    """The table of what was trained and of the run's folder."""
    early = summary["interrupted"] or summary["stopped"]
    table = plain_table("Stopped early" if early else "Run", "", "")
    table.add_row("trained", f"{summary['steps']:,} steps on {summary['tokens']:,} tokens{speed_text(summary)}")
    folder_rows(table, verb, summary, bool(early), _change(summary))
    return table


def stopped_line(summary: dict[str, Any]) -> str:
    """Why a run stopped, and from where it can go on."""
    last = summary["last_good_checkpoint"]
    good = f"the last good checkpoint is {last}" if last else "no checkpoint is from before it began"
    return f"stopped after step {summary['steps']}: {summary['stopped']}; {good}"


def _change(summary: dict[str, Any]) -> str:
    """Options with which a run that a stop rule ended goes on; one that paused goes on as it is."""
    if not summary["stopped"] or summary.get("paused"):
        return ""
    step = summary["last_good_step"]
    return ("" if step is None else f" --checkpoint {step}") + " --set KEY=VALUE"
