"""What the verbs that train on text share: choose a folder, load settings, show or run, print the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from nano3.cli.runs import CONFIG, choose_run_dir, is_main_rank
from nano3.cli.summary import show_summary

INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see cli.options."""

    preset: str | None
    settings: list[str]
    from_path: Path | None
    out: Path | None
    resume: bool
    dry_run: bool
    as_json: bool


def run_verb(verb: str, load: Callable[[str, list[str]], Any], stage: str, default: str, request: Request) -> None:
    """Run `main` of the module `stage`, or show what it would do.

    Args:
        verb: as it is typed; names the run folder.
        load: settings from a preset's name and overrides.
        stage: module with main(cfg, run_dir, from_path, resume).
        default: preset to run when none is named.

    Raises:
        UserError: wrong settings, or settings and options that contradict each other.
    """
    from nano3.config.errors import UserError

    preset = request.preset
    run_dir = choose_run_dir(request.out, f"{verb}-{Path(preset or default).stem}", request.resume)
    name = preset or (str(run_dir / CONFIG) if request.resume else default)
    cfg = load(name, request.settings)
    if request.from_path is not None and any(text.startswith("model.") for text in request.settings):
        raise UserError("--set model.* and --from contradict each other: the model's sizes come with its weights")
    if request.dry_run:
        from nano3.cli.dry_run import show_dry_run

        if request.from_path is not None:
            from nano3.stages.training import adopt

            cfg = adopt(cfg, request.from_path)
        return show_dry_run(cfg, name, request.as_json)
    result = import_module(stage).main(cfg, run_dir, request.from_path, request.resume).summary()
    if is_main_rank():
        show_summary(verb, result, request.as_json)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)
