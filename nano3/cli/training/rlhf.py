"""`nano3 rlhf`: parse, load the preset, call the stage; `nano3 rlhf explain` explains the rewards of a prompt."""

from __future__ import annotations

import json
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
    RlhfSettings,
    is_for_inner_verb,
    out_option,
    preset_option,
)
from nano3.cli.training.genrm import genrm
from nano3.cli.training.policy_summary import check_settings, show_dry_run, tell_stop
from nano3.cli.training.verb import Parts, Request, run_verb, take_architecture

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP, no_args_is_help=False)
DEFAULT_PRESET = "tiny"
Preset = Annotated[str | None, preset_option("rlhf", "tiny, rlhf", DEFAULT_PRESET)]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Ask these prompts: a file or folder of jsonl, json or parquet with prompts, conversations or "
        "preferences, hub:ORG/NAME, or generate:NAME. Repeatable: equal shares.",
        metavar="PATH",
        show_default=False,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="Who compares the answers: rules (of generated tasks), the URL of an OpenAI-compatible server, the folder "
        "of a generative reward model, or module:object.",
        metavar="JUDGE",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def rlhf(
    context: typer.Context,
    preset: Preset = None,
    settings: RlhfSettings = None,
    data: Prompts = None,
    judge: Judge = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("rlhf")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model on a judge's comparisons of its own answers, with less reasoning where that does as well.

    Without options: the newest model of sft or rlvr answers tasks that nano3 makes itself, judged by their rules, in
    minutes on a laptop CPU. Exit code 3: a stop rule ended the run, or judge or servers do not answer any more.

    [dim]Your own prompts and judge:[/]
      nano3 rlhf --data prompts.jsonl --judge http://127.0.0.1:8000 --from MODEL

    [dim]How the rewards of a prompt came about:[/]
      nano3 rlhf explain runs/rlhf-tiny --prompt 0
    """
    from nano3.config.presets import load_rlhf

    if is_for_inner_verb(context):
        return
    own = [*(settings or []), *([f"judge.spec={json.dumps(judge)}"] if judge else [])]
    request = Request(preset, own, from_path, out, resume, dry_run, as_json, data or [], checkpoint)
    parts = Parts(
        _own_prompts, _check_prompts, take_architecture, _show_summary, check_settings, show_dry_run, ("sft", "rlvr")
    )
    run_verb("rlhf", load_rlhf, "nano3.stages.rlhf", DEFAULT_PRESET, request, needs_model=True, parts=parts)


@app.command()
def explain(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a run of nano3 rlhf. Default: the newest finished one in runs/.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[int, typer.Option(help="Number of the prompt in its step, from 0.", metavar="N", min=0)] = 0,
    step: Annotated[
        int | None,
        typer.Option(help="Its step, from 1. Default: the last.", metavar="S", min=1, show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how the rewards of a prompt's answers came about: question, comparisons, base rewards, lengths and bonuses.

    [dim]The third prompt of the first step:[/]
      nano3 rlhf explain runs/rlhf-tiny --prompt 2 --step 1
    """
    from nano3.cli.options.model_choice import choose_run
    from nano3.cli.output import print_json, results
    from nano3.rl.saved.explained import explain_prompt, prompt_lines

    told = explain_prompt(choose_run(run, ("rlhf",)), prompt, step)
    if as_json:
        return print_json(told)
    for line in prompt_lines(told):
        results().print(line, markup=False, highlight=False)
    return None


app.command()(genrm)


def _own_prompts(paths: list[str], data: Any) -> list[str]:
    from nano3.config.own_chats import own_prompts

    return own_prompts(paths)


def _check_prompts(cfg: Any) -> None:
    from nano3.rl.feedback.open import check_judges, check_prompts

    check_prompts(cfg.prompts)
    check_judges(cfg)


def _show_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.training.rlhf_summary import show_rlhf_summary

    show_rlhf_summary(verb, summary, as_json)
    tell_stop(summary)
