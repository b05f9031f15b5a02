"""`nano3 pretrain`: parse, load the preset, call the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options import HELP, DryRun, FromPath, Json, Resume, Settings, out_option, preset_option
from nano3.cli.runs import CONFIG, choose_run_dir, is_main_rank
from nano3.cli.summary import show_summary

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
DEFAULT_PRESET = "tiny"
INTERRUPTED = 130


@app.command()
def pretrain(
    preset: Annotated[str | None, preset_option("tiny, phase1, phase2", DEFAULT_PRESET)] = None,
    settings: Settings = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("pretrain")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model on text.

    Without options: a tiny model learns the Python standard library, in minutes on a laptop CPU.

    [dim]Look before you run:[/]
      nano3 pretrain --preset phase1 --dry-run

    [dim]Your own text:[/]
      nano3 pretrain --set data.sources.mine=texts/ --set 'data.blend={mine=1}'

    [dim]Continue a run that stopped:[/]
      nano3 pretrain --resume
    """
    from nano3.config.errors import UserError
    from nano3.config.presets import load_pretrain

    run_dir = choose_run_dir(out, f"pretrain-{Path(preset or DEFAULT_PRESET).stem}", resume)
    name = preset or (str(run_dir / CONFIG) if resume else DEFAULT_PRESET)
    cfg = load_pretrain(name, settings or [])
    if from_path is not None and any(text.startswith("model.") for text in settings or []):
        raise UserError("--set model.* and --from contradict each other: the model's sizes come with its weights")
    if dry_run:
        from nano3.cli.dry_run import show_dry_run

        return show_dry_run(cfg, name, as_json)
    from nano3.stages.pretrain import main

    result = main(cfg, run_dir=run_dir, from_path=from_path, resume=resume).summary()
    if is_main_rank():
        show_summary(result, as_json)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)
