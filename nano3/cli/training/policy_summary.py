"""What the verbs of reinforcement learning share: how settings are checked, shown and summed up."""

from __future__ import annotations

import sys
from typing import Any

from nano3.cli.output import folder_rows, plain_table, speed_text


def check_settings(cfg: Any, ranks: int) -> None:
    """Refuse settings that cannot be."""
    from nano3.stages.settings import check_policy_settings

    del ranks  # any number can share the prompts
    check_policy_settings(cfg)


def show_dry_run(cfg: Any, preset: str, as_json: bool) -> None:
    """Print what the run would be."""
    from nano3.cli.training.policy_dry_run import show_policy_dry_run

    show_policy_dry_run(cfg, preset, as_json)


def run_table(verb: str, summary: dict[str, Any]) -> Any:
    """The table of what was trained and of the run's folder."""
    early = summary["interrupted"] or summary["stopped"]
    table = plain_table("Stopped early" if early else "Run", "", "")
    table.add_row("trained", f"{summary['steps']:,} steps on {summary['tokens']:,} tokens{speed_text(summary)}")
    folder_rows(table, verb, summary, bool(early), _change(summary))
    return table


def tell_stop(summary: dict[str, Any]) -> None:
    """Say on stderr why a run stopped, where one did, and from where it can go on."""
    if not summary["stopped"]:
        return
    last = summary["last_good_checkpoint"]
    good = f"the last good checkpoint is {last}" if last else "no checkpoint is from before it began"
    print(f"stopped after step {summary['steps']}: {summary['stopped']}; {good}", file=sys.stderr)


def _change(summary: dict[str, Any]) -> str:
    """Options with which a run that a stop rule ended goes on; one that paused goes on as it is."""
    if not summary["stopped"] or summary.get("paused"):
        return ""
    step = summary["last_good_step"]
    change = " --judge JUDGE" if summary.get("unread") else " --set KEY=VALUE"
    return ("" if step is None else f" --checkpoint {step}") + change
