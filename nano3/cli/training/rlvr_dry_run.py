"""What `nano3 rlvr --dry-run` shows: the resolved settings, the run's size, and how it differs from the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from nano3.cli.hardware import detect
from nano3.cli.output import bytes_text, plain_table, print_json, print_table, results, value_text
from nano3.config.presets import to_toml
from nano3.config.report import diff_from_report
from nano3.config.rlvr import RlvrConfig
from nano3.memory import main_memory_free
from nano3.model.count import count_parameters, memory


def show_rlvr_dry_run(cfg: RlvrConfig, preset: str, as_json: bool) -> None:
    """Print what the run would be, as tables or as one JSON object."""
    facts = rlvr_facts(cfg)
    if as_json:
        print_json(facts)
    else:
        _print_tables(cfg, preset, facts)


def rlvr_facts(cfg: RlvrConfig) -> dict[str, Any]:
    """Everything that a dry run tells; sizes in parameters, bytes, samples and tokens."""
    hardware, rollout = detect(), cfg.rollout
    dtype = hardware.compute_dtype if cfg.train.dtype == "auto" else cfg.train.dtype
    counts, held, samples = count_parameters(cfg.model), memory(cast(Any, cfg), dtype), rollout.prompts * rollout.group
    whole = sum(cfg.environments.weights.values())
    return {
        "config": asdict(cfg),
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "compute_dtype": dtype,
        "memory_bytes": asdict(held) | {"total": held.total},
        "free_memory_bytes": main_memory_free(),
        "steps": cfg.train.steps,
        "samples_per_step": samples,
        "samples": samples * cfg.train.steps,
        "longest_sample": cfg.context,
        "environments": {
            name: {"spec": cfg.environments.specs.get(name, name), "share": weight / whole}
            for name, weight in cfg.environments.weights.items()
        },
        "report_phase": "rlvr",
        "differences": [asdict(row) for row in diff_from_report(cfg)],
    }


def _print_tables(cfg: RlvrConfig, preset: str, facts: dict[str, Any]) -> None:
    from rich.syntax import Syntax

    console = results()
    console.print(f"[bold]Settings[/] of preset {preset}, resolved\n")
    console.print(Syntax(to_toml(cfg), "toml", theme="ansi_dark", background_color="default", word_wrap=True))
    table = plain_table("Difference from the report (nano3-30b-a3b, rlvr)", "setting", "here", "report", "section")
    for row in facts["differences"]:
        table.add_row(row["key"], value_text(row["here"]), value_text(row["report"]), row["section"])
    print_table(console, table)
    table = plain_table("Environments", "", "", "share of the prompts")
    for name, row in facts["environments"].items():
        table.add_row(name, row["spec"], f"{row['share']:.1%}")
    print_table(console, table)
    table = plain_table("Run", "", "")
    table.add_row("parameters", f"{facts['total_parameters']:,}")
    table.add_row("steps", f"{facts['steps']:,}, one update each")
    table.add_row("samples a step", f"{cfg.rollout.prompts:,} prompts x {cfg.rollout.group} = "
                  f"{facts['samples_per_step']:,}")  # fmt: skip
    table.add_row("longest sample", f"{facts['longest_sample']:,} tokens, answers of {cfg.rollout.max_tokens:,}")
    table.add_row("memory of training", f"{bytes_text(facts['memory_bytes']['total'])}, estimated, "
                  "without the engine's states")  # fmt: skip
    table.add_row("free here", bytes_text(facts["free_memory_bytes"]))
    print_table(console, table)
    console.print("Dry run: nothing was run. Drop [bold]--dry-run[/] to start.")
