"""`nano3 chat`: a conversation at the terminal, with a local model or a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options import engine as engines
from nano3.cli.options import sampling as choices
from nano3.cli.options.common import HELP, complete_model
from nano3.cli.options.model_choice import choose_model

if TYPE_CHECKING:
    from nano3.chat.backends import Backend

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)

LocalModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"{engines.MODEL_HELP} With --url: the server's name of a model.",
        metavar="MODEL",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Url = Annotated[str | None, typer.Option(help="Talk to this server.", metavar="URL", show_default=False)]
ApiKey = Annotated[
    str | None,
    typer.Option(help="Key for the server.", metavar="KEY", envvar="NANO3_API_KEY", show_default=False),
]
HideThinking = Annotated[bool, typer.Option("--hide-thinking", metavar="", help="Show only how long it thinks.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 takes the most probable token.", min=0, metavar="X", show_default=False)
]
TopP = Annotated[
    float | None,
    typer.Option(help="Smallest set of tokens of this probability.", min=0, max=1, metavar="P", show_default=False),
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Most tokens of an answer.", min=1, metavar="N", show_default=False)
]


@app.command()
def chat(
    ctx: typer.Context,
    model: LocalModel = None,
    url: Url = None,
    api_key: ApiKey = None,
    system: choices.System = None,
    thinking: choices.Thinking = False,
    no_thinking: choices.NoThinking = False,
    hide_thinking: HideThinking = False,
    thinking_budget: choices.ThinkingBudget = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: choices.Seed = None,
    dtype: engines.Dtype = "auto",
    kv_cache_dtype: engines.KvCacheDtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    max_context: engines.MaxContext = None,
    engine_name: engines.EngineName = "native",
    engine_arg: engines.EngineArg = None,
) -> None:
    """Talk with a model at the terminal. /help lists what can be done there.

    [dim]A local model:[/]
      nano3 chat --model runs/pretrain-tiny

    [dim]A server:[/]
      nano3 chat --url http://127.0.0.1:8000

    [dim]From a script, one message a line:[/]
      printf 'Hello\\nAnd in French?\\n' | nano3 chat --model PATH --no-thinking
    """
    from nano3.chat.backends import ChatSettings
    from nano3.chat.session import Session, say
    from nano3.chat.terminal import converse, read_lines

    settings = ChatSettings(choices.wanted_thinking(ctx.params), thinking_budget, temperature, top_p, max_tokens, seed)
    backend = _backend(ctx.params)
    if backend.thinks is False:
        from nano3.engine.launch import BASE_NOTE

        say(BASE_NOTE.format(name=backend.name))
    try:
        session = Session(backend, settings, system, hide_thinking)
        code = converse(session) if sys.stdin.isatty() else read_lines(session)
    finally:
        backend.close()
    raise typer.Exit(code)


def _backend(options: dict[str, Any]) -> Backend:
    from nano3.chat.backends import LocalBackend, ServerBackend

    if options["url"] is not None:
        return ServerBackend(options["url"], options["api_key"], options["model"])
    options = {**options, "model": choose_model(options["model"], "--model", server=True)}
    from nano3.engine.launch import is_base_model

    # One conversation needs one place, and a second for what the prefix cache keeps of it.
    engine, name = engines.open_from(options | {"max_sequences": options["max_sequences"] or 2})
    return LocalBackend(engine, name, not is_base_model(options["model"]))
