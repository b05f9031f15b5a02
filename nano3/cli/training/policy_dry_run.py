"""What `--dry-run` of rlvr and rlhf shows: the resolved settings, the run's size, how it differs from the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from nano3.cli.hardware import detect
from nano3.cli.output import bytes_text, plain_table, print_json, print_table, results, value_text
from nano3.config.presets import to_toml
from nano3.config.report import diff_from_report, report_phase
from nano3.config.rlhf import AnyPolicyConfig, RlhfConfig
from nano3.memory import main_memory_free
from nano3.model.count import count_parameters, memory


def show_policy_dry_run(cfg: AnyPolicyConfig, preset: str, as_json: bool) -> None:
    """Print what the run would be, as tables or as one JSON object."""
    facts = policy_facts(cfg)
    if as_json:
        print_json(facts)
    else:
        _print_tables(cfg, preset, facts)


def policy_facts(cfg: AnyPolicyConfig) -> dict[str, Any]:
    """Everything that a dry run tells; sizes in parameters, bytes, samples and tokens."""
    hardware, rollout = detect(), cfg.rollout
    dtype = hardware.compute_dtype if cfg.train.dtype == "auto" else cfg.train.dtype
    counts, held, samples = count_parameters(cfg.model), memory(cast(Any, cfg), dtype), rollout.prompts * rollout.group
    facts = {
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
        "report_phase": report_phase(cfg),
        "differences": [asdict(row) for row in diff_from_report(cfg)],
    }
    if isinstance(cfg, RlhfConfig):
        facts |= {"prompts": _shares(cfg), "judge": cfg.judge.spec or None, "judge_calls_per_step": samples}
    else:
        facts["environments"] = _shares(cfg)
    return facts


def _shares(cfg: AnyPolicyConfig) -> dict[str, Any]:
    """What a step's prompts are of, by name."""
    weights, specs = cfg.environments.weights, cfg.environments.specs
    if isinstance(cfg, RlhfConfig):
        specs = {name: cfg.prompts.source(name) for name in weights}
    whole = sum(weights.values())
    return {name: {"spec": specs.get(name, name), "share": weight / whole} for name, weight in weights.items()}


def _print_tables(cfg: AnyPolicyConfig, preset: str, facts: dict[str, Any]) -> None:
    from rich.syntax import Syntax

    console, phase = results(), facts["report_phase"]
    console.print(f"[bold]Settings[/] of preset {preset}, resolved\n")
    console.print(Syntax(to_toml(cfg), "toml", theme="ansi_dark", background_color="default", word_wrap=True))
    title = f"Difference from the report (nano3-30b-a3b, {phase})"
    table = plain_table(title, "setting", "here", "report", "section")
    for row in facts["differences"]:
        table.add_row(row["key"], value_text(row["here"]), value_text(row["report"]), row["section"])
    print_table(console, table)
    kind = "prompts" if "prompts" in facts else "environments"
    table = plain_table(kind.capitalize(), "", "", "share of the prompts")
    for name, row in facts[kind].items():
        table.add_row(name, row["spec"], f"{row['share']:.1%}")
    print_table(console, table)
    table = plain_table("Run", "", "")
    table.add_row("parameters", f"{facts['total_parameters']:,}")
    table.add_row("steps", f"{facts['steps']:,}, one update each")
    table.add_row("samples a step", f"{cfg.rollout.prompts:,} prompts x {cfg.rollout.group} = "
                  f"{facts['samples_per_step']:,}")  # fmt: skip
    if kind == "prompts":
        table.add_row("judge", f"{facts['judge'] or 'none yet: give --judge'}, {facts['judge_calls_per_step']:,} "
                      "comparisons a step")  # fmt: skip
    table.add_row("longest sample", f"{facts['longest_sample']:,} tokens, answers of {cfg.rollout.max_tokens:,}")
    table.add_row("memory of training", f"{bytes_text(facts['memory_bytes']['total'])}, estimated, "
                  "without the engine's states")  # fmt: skip
    table.add_row("free here", bytes_text(facts["free_memory_bytes"]))
    print_table(console, table)
    console.print("Dry run: nothing was run. Drop [bold]--dry-run[/] to start.")
