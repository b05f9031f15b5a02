"""`nano3 sft`: parse, load the preset, call the stage; `nano3 sft preview` shows what it would train on."""

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
    Processes,
    Rank,
    Resume,
    SftSettings,
    is_for_inner_verb,
    out_option,
    preset_option,
)
from nano3.cli.training.verb import Parts, Request, run_verb, take_architecture

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP, no_args_is_help=False)
DEFAULT_PRESET = "tiny"
Preset = Annotated[str | None, preset_option("sft", "tiny, sft", DEFAULT_PRESET)]
Chats = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Train on these conversations: a file or folder of jsonl, json or parquet, hub:ORG/NAME, or "
        "generate:NAME. Repeatable: equal shares.",
        metavar="PATH",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def sft(
    context: typer.Context,
    preset: Preset = None,
    settings: SftSettings = None,
    data: Chats = None,
    from_path: FromPath = None,
    out: Annotated[Path | None, out_option("sft")] = None,
    resume: Resume = False,
    checkpoint: Checkpoint = None,
    dry_run: DryRun = False,
    world: Processes = None,
    rank: Rank = None,
    as_json: Json = False,
) -> None:
    """Train a model on conversations, so that it chats, thinks and calls tools.

    Without options: the newest run's model learns from tasks that nano3 makes itself, in minutes on a laptop CPU.

    [dim]Your own conversations, after a look at what is trained:[/]
      nano3 sft preview --data chats.jsonl
      nano3 sft --data chats.jsonl --from MODEL

    [dim]Then talk to it:[/]
      nano3 serve
    """
    from nano3.config.presets import load_sft

    if is_for_inner_verb(context, "nano3 sft preview --data ..."):
        return
    request = Request(
        preset, settings or [], from_path, out, resume, dry_run, as_json, data or [], checkpoint, world, rank
    )
    parts = Parts(_own_chats, _check_chats, take_architecture, _show_summary)
    run_verb("sft", load_sft, "nano3.stages.sft", DEFAULT_PRESET, request, needs_model=True, parts=parts)


@app.command()
def preview(
    preset: Preset = None,
    settings: SftSettings = None,
    data: Chats = None,
    from_path: FromPath = None,
    rows: Annotated[int, typer.Option(help="Rows to show of each data set.", min=1, metavar="N")] = 2,
    html: Annotated[
        Path | None, typer.Option(help="Write them to this page instead.", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Show the first rows of each data set as the model reads them, what it is trained to write highlighted.

    The tokenizer and the chat template are those of the model (--from, or the newest run).
    """
    from nano3.cli.options.common import named_as_typed
    from nano3.cli.options.model_choice import choose_model
    from nano3.cli.training.sft_preview import collect, show, show_on_page
    from nano3.config.errors import UserError
    from nano3.config.own_chats import chat_names
    from nano3.config.presets import load_sft
    from nano3.data.chat.sets import set_sources
    from nano3.stages.sft_tokenizer import find_tokenizer

    cfg = load_sft(preset or DEFAULT_PRESET, [*(_own_chats(data, None) if data else []), *(settings or [])])
    with named_as_typed({f"data.sources.{name}:": "--data:" for name in chat_names(data or [])}):
        set_sources(cfg.data)
        tokenizer = find_tokenizer(cfg.data.tokenizer, Path(choose_model(from_path, "--from")))
        shown = collect(cfg, tokenizer, rows)
    full = [one for one in shown if one.rows]
    if full and html is None:
        show(full, tokenizer)
    elif full and html is not None:
        show_on_page(full, tokenizer, html)
        print(f"page: {html}", file=sys.stderr)
    if empty := [f"{one.name}: no row to train on; {one.left_out or 'no record'}" for one in shown if not one.rows]:
        raise UserError("; ".join(empty))


def _own_chats(paths: list[str], data: Any) -> list[str]:
    from nano3.config.own_chats import own_chats

    return own_chats(paths)


def _check_chats(cfg: Any) -> None:
    from nano3.data.chat.sets import set_sources

    set_sources(cfg.data)


def _show_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.training.sft_summary import show_sft_summary

    show_sft_summary(verb, summary, as_json)
