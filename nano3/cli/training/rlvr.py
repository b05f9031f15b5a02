"""`nano3 rlvr`: parse, load the preset, call the stage; `nano3 rlvr profile` measures pass rates before training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.options.common import (
    HELP,
    Checkpoint,
    DryRun,
    FromPath,
    Json,
    Resume,
    RlvrSettings,
    is_for_inner_verb,
    out_option,
    preset_option,
)
from nano3.cli.rollouts.rescore import rescore
from nano3.cli.rollouts.show import show
from nano3.cli.training.policy_summary import check_settings, show_dry_run, tell_stop
from nano3.cli.training.verb import STOPPED, Parts, Request, run_verb, take_architecture

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP, no_args_is_help=False)
DEFAULT_PRESET = "tiny"
Preset = Annotated[str | None, preset_option("rlvr", "tiny, rlvr", DEFAULT_PRESET)]


@app.callback(invoke_without_command=True)
def rlvr(
    context: typer.Context,
    preset: Preset = None,
    settings: RlvrSettings = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("rlvr")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model on verifiable rewards of many environments at once, with a curriculum of pass rates.

    Without options: the newest sft run's model learns from tasks that nano3 makes itself, in minutes on a laptop CPU.
    Exit code 3: a stop rule ended the run, or no server of its rollouts answers any more, with the reason.

    [dim]Your own tasks, after a look at how hard they are:[/]
      nano3 rlvr profile --set 'environments.weights={math=1}' \\
        --set environments.options.math.rows=tasks.jsonl
      nano3 rlvr --from MODEL --set 'environments.weights={math=1}' \\
        --set environments.options.math.rows=tasks.jsonl
    """
    from nano3.config.presets import load_rlvr

    if is_for_inner_verb(context):
        return
    request = Request(preset, settings or [], from_path, out, resume, dry_run, as_json, [], checkpoint)
    parts = Parts(
        lambda paths, data: [],
        _check_environments,
        take_architecture,
        _show_summary,
        check_settings,
        show_dry_run,
        ("sft",),
    )
    run_verb("rlvr", load_rlvr, "nano3.stages.rlvr", DEFAULT_PRESET, request, needs_model=True, parts=parts)


@app.command()
def profile(
    preset: Preset = None,
    settings: RlvrSettings = None,
    from_path: FromPath = None,
    out: Annotated[Path, typer.Option(help="File to write.", metavar="FILE", dir_okay=False)] = Path("profile.json"),
    as_json: Json = False,
) -> None:
    """Measure how often a model solves each training task, and say which environments are too hard or too easy.

    Interrupted, it goes on where it was when it is called again. Exit code 3: an environment failed too often.

    A run uses the file again: nano3 rlvr --set curriculum.profile=profile.json
    """
    from nano3.cli.options.model_choice import choose_model
    from nano3.cli.training.run_folder import is_main_rank
    from nano3.config.presets import load_rlvr
    from nano3.files import check_writable

    cfg = load_rlvr(preset or DEFAULT_PRESET, settings or [])
    _check_environments(cfg)
    source = choose_model(from_path, "--from", stages=("sft",))
    check_writable(out.parent, "--out")
    from nano3.stages.rlvr import profile_tasks

    go_on = "the same command goes on with the tasks that are left"
    try:
        result = profile_tasks(cfg, source, out).summary()
    except KeyboardInterrupt:
        if is_main_rank():
            print(go_on, file=sys.stderr)
        raise
    if is_main_rank():
        from nano3.cli.training.rlvr_summary import show_profile

        if as_json or not result["stopped"]:
            show_profile(result, as_json)
        if result["stopped"]:
            print(f"stopped: {result['stopped']}; {go_on}", file=sys.stderr)
    if result["stopped"]:
        raise typer.Exit(STOPPED)


app.command()(show)
app.command()(rescore)


def _check_environments(cfg: Any) -> None:
    from nano3.config.errors import UserError
    from nano3.rl.environments.registry import options_of

    for name in cfg.environments.weights:
        known = options_of(cfg.environments.specs.get(name, name))
        for option in cfg.environments.options.get(name, {}):
            if option not in known:
                raise UserError(
                    f"environments.options.{name}.{option}: the environment takes {', '.join(sorted(known)) or 'none'}"
                )


def _show_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.training.rlvr_summary import show_rlvr_summary

    show_rlvr_summary(verb, summary, as_json)
    tell_stop(summary)
