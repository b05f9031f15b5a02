"""`nano3 pretrain`: parse, load the preset, call the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options import complete_preset, complete_setting
from nano3.cli.runs import choose_run_dir, is_main_rank
from nano3.cli.summary import show_summary

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}
)
DEFAULT_PRESET = "tiny"
INTERRUPTED = 130


@app.command()
def pretrain(
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset to run: [bold]tiny[/], [bold]phase1[/], [bold]phase2[/], or a TOML file. Default: tiny.",
            metavar="NAME|FILE",
            autocompletion=complete_preset,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting, for example --set train.tokens=1e6. Repeatable.",
            metavar="KEY=VALUE",
            autocompletion=complete_setting,
            show_default=False,
        ),
    ] = None,
    from_path: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start from these weights: a run folder or a Hugging Face folder.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. Default: a new runs/pretrain-PRESET.",
            metavar="DIR",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", metavar="", help="Continue the run in --out (default: the newest of this preset)."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", metavar="", help="Show settings, size, memory and the difference from the report; run nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the result on stdout as one JSON object.")
    ] = False,
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
    from nano3.config.presets import load_pretrain

    run_dir = choose_run_dir(out, f"pretrain-{Path(preset or DEFAULT_PRESET).stem}", resume)
    name = preset or (str(run_dir) if resume else DEFAULT_PRESET)
    cfg = load_pretrain(name, settings or [])
    if dry_run:
        from nano3.cli.dry_run import show_dry_run

        return show_dry_run(cfg, name, as_json)
    from nano3.stages.pretrain import main

    result = main(cfg, run_dir=run_dir, from_path=from_path, resume=resume).summary()
    if is_main_rank():
        show_summary(result, as_json)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)
