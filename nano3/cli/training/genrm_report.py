"""What `nano3 rlhf genrm` shows: before a run with --dry-run, and when it is finished."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nano3.cli.output import folder_rows, plain_table, print_json, print_table, results, speed_text
from nano3.cli.training.policy_dry_run import policy_facts
from nano3.config.genrm import GenrmConfig
from nano3.config.presets import command_of, to_toml
from nano3.config.report import diff_from_report

NAMES = {
    "score_error": "|score error|",
    "ranking_error": "|ranking error|",
    "order_agreement": "in the right order",
    "format_violations": "format violations",
    "reward": "reward, Equation 1",
}
"""Of measures."""
SHARES = ("order_agreement", "format_violations")
STAGES = {"warm_start": "supervised start", "grpo": "after GRPO"}


def show_genrm_dry_run(cfg: GenrmConfig, preset: str, as_json: bool) -> None:
    """Print what the run would be, as tables or as one JSON object."""
    facts = genrm_facts(cfg)
    if as_json:
        print_json(facts)
    else:
        _print_tables(cfg, preset, facts)


def genrm_facts(cfg: GenrmConfig) -> dict[str, Any]:
    """Everything that a dry run tells; sizes in parameters, bytes, samples and tokens."""
    facts, train = policy_facts(cfg.rlvr("")), cfg.warm_start.train
    del facts["environments"]
    step = train.batch_size * cfg.warm_start.pack_length
    steps = train.steps or -(-train.tokens // step)
    return facts | {
        "config": asdict(cfg),
        "warm_start": {"steps": steps, "most_tokens": steps * step, "most_tokens_per_step": step},
        "sources": cfg.data.sources,
        "judged_pairs": cfg.judging.pairs,
        "report_phase": "genrm",
        "differences": [asdict(row) for row in diff_from_report(cfg)],
    }


def show_genrm_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the result of a run, as tables or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    console.print()
    if summary["judging"]:
        print_table(console, _judging_table(summary))
    print_table(console, _run_table(command_of(verb), summary))


def _judging_table(summary: dict[str, Any]) -> Any:
    """Each figure with its 95 % interval; beside it whether it is better than the best constant's."""
    measures = summary["judging"]["measures"]
    stages = [stage for stage in STAGES if stage in measures[0]["stages"]]
    columns = ["best constant", *(STAGES[stage] for stage in stages), *(["change, 95 %"] if len(stages) > 1 else [])]
    title = f"Judgements of {summary['pairs']['heldout']:,} held-out pairs, means"
    table = plain_table(title, "", *columns, right=tuple(columns))
    for row in measures:
        name, digits = row["name"], _digits(row)
        means = [row["stages"][stage] for stage in stages]
        shown = [
            f"{mean['value']:{digits}} ({mean['low']:{digits}} to {mean['high']:{digits}})"
            + {"better": " +", "worse": " -"}.get(mean["over_constant"]["verdict"], "  ")
            for mean in means
        ]
        if change := row["change"]:
            shown.append(f"{change['value']:+{digits}} ({change['low']:+{digits}} to {change['high']:+{digits}})")
        table.add_row(NAMES[name], f"{row['constant']:{digits}}", *shown)
    table.caption = "in brackets 95 % intervals; + better, - worse than the best constant by a paired bootstrap"
    table.caption_justify = "left"
    return table


def _digits(row: dict[str, Any]) -> str:
    """Shares with three, other means with two, or one where a number has two before the point: at 120 columns no row
    then breaks."""
    if row["name"] in SHARES:
        return ".3f"
    bounds = [mean[end] for mean in (*row["stages"].values(), row["change"]) if mean for end in ("low", "high")]
    return ".1f" if max(map(abs, (row["constant"], *bounds))) >= 10 else ".2f"


def _run_table(command: str, summary: dict[str, Any]) -> Any:
    early = bool(summary["interrupted"] or summary["stopped"])
    pairs, table = summary["pairs"], plain_table("Stopped early" if early else "Run", "", "")
    left_out = f", {pairs['refused']:,} rows left out" if pairs["refused"] else ""
    table.add_row("pairs", f"{pairs['train']:,} trained on in both orders, {pairs['heldout']:,} held out{left_out}")
    for name, words in (("warm_start", "supervised start"), ("grpo", "GRPO")):
        if part := summary[name]:
            table.add_row(words, f"{part['steps']:,} steps on {part['tokens']:,} tokens{speed_text(part)}")
    step = summary["last_good_step"]
    change = ("" if step is None else f" --checkpoint {step}") + " --set KEY=VALUE" if summary["stopped"] else ""
    folder_rows(table, command, summary, early, change)
    if not early:
        table.add_row("use it as judge", f"nano3 rlhf --judge {summary['run']}")
    return table


def _print_tables(cfg: GenrmConfig, preset: str, facts: dict[str, Any]) -> None:
    from rich.syntax import Syntax

    from nano3.cli.output import bytes_text, value_text

    console = results()
    console.print(f"[bold]Settings[/] of preset {preset}, resolved\n")
    console.print(Syntax(to_toml(cfg), "toml", theme="ansi_dark", background_color="default", word_wrap=True))
    table = plain_table("Difference from the report (genrm)", "setting", "here", "report", "section")
    for row in facts["differences"]:
        table.add_row(row["key"], value_text(row["here"]), value_text(row["report"]), row["section"])
    print_table(console, table)
    table, start = plain_table("Run", "", ""), facts["warm_start"]
    table.add_row("parameters", f"{facts['total_parameters']:,}")
    table.add_row("pairs", ", ".join(facts["sources"]))
    table.add_row("supervised start", f"{start['steps']:,} steps of at most {start['most_tokens_per_step']:,} tokens")
    table.add_row("GRPO", f"{facts['steps']:,} steps of {cfg.rollout.prompts:,} pairs x {cfg.rollout.group} judgements")
    table.add_row("longest sample", f"{facts['longest_sample']:,} tokens, judgements of {cfg.rollout.max_tokens:,}")
    table.add_row("held-out pairs", f"at most {facts['judged_pairs']:,}, judged after each part")
    table.add_row("memory of training", f"{bytes_text(facts['memory_bytes']['total'])}, estimated, of GRPO without the "
                  "engine's states")  # fmt: skip
    table.add_row("free here", bytes_text(facts["free_memory_bytes"]))
    print_table(console, table)
    console.print("Dry run: nothing was run. Drop [bold]--dry-run[/] to start.")
