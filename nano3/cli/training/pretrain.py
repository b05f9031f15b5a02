"""`nano3 pretrain`: parse, load the preset, call the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options.common import (
    HELP,
    Checkpoint,
    Data,
    DryRun,
    FromPath,
    Json,
    Processes,
    Rank,
    Resume,
    Settings,
    out_option,
    preset_option,
)
from nano3.cli.training.verb import Request, run_verb

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
DEFAULT_PRESET = "tiny"


@app.command()
def pretrain(
    preset: Annotated[str | None, preset_option("pretrain", "tiny, phase1, phase2", DEFAULT_PRESET)] = None,
    settings: Settings = None,
    data: Data = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("pretrain")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    world: Processes = None,
    rank: Rank = None,
    as_json: Json = False,
) -> None:
    """Train a model on text.

    Without options: a tiny model learns the Python standard library, in minutes on a laptop CPU.

    [dim]Look before you run:[/]
      nano3 pretrain --preset phase1 --dry-run

    [dim]Your own text:[/]
      nano3 pretrain --data texts/ --data more.jsonl.gz

    [dim]Continue a run that stopped:[/]
      nano3 pretrain --resume
    """
    from nano3.config.presets import load_pretrain

    request = Request(
        preset, settings or [], from_path, out, resume, dry_run, as_json, data or [], checkpoint, world, rank
    )
    run_verb("pretrain", load_pretrain, "nano3.stages.pretrain", DEFAULT_PRESET, request)
