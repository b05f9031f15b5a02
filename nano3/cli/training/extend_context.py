"""`nano3 extend-context`: parse, load the preset, call the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options.common import (
    HELP,
    Checkpoint,
    ContextSettings,
    Data,
    DryRun,
    FromPath,
    Json,
    Processes,
    Rank,
    Resume,
    out_option,
    preset_option,
)
from nano3.cli.training.verb import Request, run_verb

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
DEFAULT_PRESET = "tiny"


@app.command()
def extend_context(
    preset: Annotated[str | None, preset_option("extend-context", "tiny, long-context", DEFAULT_PRESET)] = None,
    settings: ContextSettings = None,
    data: Data = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("extend-context")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    world: Processes = None,
    rank: Rank = None,
    as_json: Json = False,
) -> None:
    """Go on training a model with long sequences, mixed with short ones.

    Every step has one length and the same number of tokens. The mixture keeps what the model does well on short text.

    [dim]After `nano3 pretrain`:[/]
      nano3 extend-context

    [dim]Your own text, for training and for the questions that are made from it:[/]
      nano3 extend-context --from RUN --data texts/

    [dim]Other lengths, with their shares of the tokens:[/]
      nano3 extend-context --from RUN --set 'context.lengths={8192=3, 512=1}'
    """
    from nano3.config.errors import UserError
    from nano3.config.presets import load_extend_context

    if any(text.split("=")[0].strip() == "data.seq_len" for text in settings or []):
        raise UserError("--set data.seq_len: extend-context takes its sequence lengths from context.lengths")
    request = Request(
        preset, settings or [], from_path, out, resume, dry_run, as_json, data or [], checkpoint, world, rank
    )
    run_verb(
        "extend-context", load_extend_context, "nano3.stages.extend_context", DEFAULT_PRESET, request, needs_model=True
    )
