"""`nano3 rlhf genrm`: parse, load the preset, call the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.options.common import (
    Checkpoint,
    DryRun,
    FromPath,
    GenrmSettings,
    Json,
    Resume,
    named_as_typed,
    out_option,
    preset_option,
)
from nano3.cli.training.policy_summary import tell_stop
from nano3.cli.training.verb import Parts, Request, run_verb, take_architecture

DEFAULT_PRESET = "tiny"
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Train on these preference pairs: a file or folder of jsonl, json or parquet, hub:ORG/NAME, or "
        "generate:preferences. Repeatable.",
        metavar="PATH",
        show_default=False,
    ),
]


def genrm(
    preset: Annotated[str | None, preset_option("genrm", "tiny, genrm", DEFAULT_PRESET)] = None,
    settings: GenrmSettings = None,
    data: Pairs = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("genrm")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a generative reward model: a judge that compares two answers and scores both.

    A supervised start on judgements written out, then GRPO; both are scored on held-out pairs. Without options: the
    newest sft run's model learns from pairs that nano3 makes itself, in minutes on a laptop CPU. Exit code 3: a stop
    rule ended the run, with the reason.

    [dim]Your own pairs, and the judge at work:[/]
      nano3 rlhf genrm --data prefs.jsonl --from MODEL
      nano3 rlhf --judge runs/genrm-tiny
    """
    from nano3.config.presets import load_genrm

    request = Request(preset, settings or [], from_path, out, resume, dry_run, as_json, data or [], checkpoint)
    parts = Parts(
        _own_pairs, _check_pairs(bool(data)), take_architecture, _show_summary, _check_settings, _show_dry_run, ("sft",)
    )
    run_verb("genrm", load_genrm, "nano3.stages.genrm.run", DEFAULT_PRESET, request, needs_model=True, parts=parts)


def _own_pairs(paths: list[str], data: Any) -> list[str]:
    from nano3.config.own_chats import own_pairs

    return own_pairs(paths)


def _check_pairs(as_typed: bool) -> Any:
    """Refuses sources that are not there; `as_typed`: they were given with --data."""

    def check(cfg: Any) -> None:
        from nano3.stages.genrm.pairs import check_sources

        with named_as_typed({"data.sources:": "--data:"} if as_typed else {}):
            check_sources(cfg.data)

    return check


def _check_settings(cfg: Any, ranks: int) -> None:
    from nano3.stages.settings import check_policy_settings, check_settings

    check_settings(cfg.sft(""), ranks)
    check_policy_settings(cfg.rlvr(""))


def _show_dry_run(cfg: Any, preset: str, as_json: bool) -> None:
    from nano3.cli.training.genrm_report import show_genrm_dry_run

    show_genrm_dry_run(cfg, preset, as_json)


def _show_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.training.genrm_report import show_genrm_summary

    show_genrm_summary(verb, summary, as_json)
    tell_stop(summary | (summary["grpo"] if summary["stopped"] else {}))
