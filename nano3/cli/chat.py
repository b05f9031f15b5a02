"""`nano3 chat`: a conversation at the terminal, with a local model or a server."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli import engine_options as engines
from nano3.cli import sampling_options as choices
from nano3.cli.model_choice import choose_model
from nano3.cli.options import HELP, complete_model
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.cli.chat_backends import Backend
    from nano3.cli.chat_session import Session

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
HISTORY_LINES = 1000
LEAVE_WITHIN_S = 3.0
"""Two Ctrl-C within this time leave."""

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
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    max_context: engines.MaxContext = None,
    engine_name: engines.EngineName = "native",
) -> None:
    """Talk with a model at the terminal. /help lists what can be done there.

    [dim]A local model:[/]
      nano3 chat --model runs/pretrain-tiny

    [dim]A server:[/]
      nano3 chat --url http://127.0.0.1:8000

    [dim]From a script, one message a line:[/]
      printf 'Hello\\nAnd in French?\\n' | nano3 chat --model PATH --no-thinking
    """
    from nano3.cli.chat_backends import ChatSettings
    from nano3.cli.chat_session import Session, say

    settings = ChatSettings(choices.wanted_thinking(ctx.params), thinking_budget, temperature, top_p, max_tokens, seed)
    backend = _backend(ctx.params)
    if backend.thinks is False:
        from nano3.engine.launch import BASE_NOTE

        say(BASE_NOTE.format(name=backend.name))
    try:
        session = Session(backend, settings, system, hide_thinking)
        code = _converse(session) if sys.stdin.isatty() else _read_lines(session)
    finally:
        backend.close()
    raise typer.Exit(code)


def _backend(options: dict[str, Any]) -> Backend:
    from nano3.cli.chat_backends import LocalBackend, ServerBackend

    if options["url"] is not None:
        return ServerBackend(options["url"], options["api_key"], options["model"])
    options = {**options, "model": choose_model(options["model"], "--model", server=True)}
    from nano3.engine.launch import is_base_model

    # One conversation needs one place, and a second for what the prefix cache keeps of it.
    engine, name = engines.open_from(options | {"max_sequences": options["max_sequences"] or 2})
    return LocalBackend(engine, name, not is_base_model(options["model"]))


def _read_lines(session: Session) -> int:
    """Piped input: a turn a line; the first error ends it."""
    from nano3.cli.chat_session import Quit

    with contextlib.suppress(Quit):
        for line in sys.stdin:
            session.enter(line.rstrip("\r\n"))
    return 0


def _converse(session: Session) -> int:
    from nano3.cli.chat_backends import INTERRUPTED
    from nano3.cli.chat_session import Quit, dim, say

    print(dim(f"{session.backend.name} · /help for commands, Ctrl-D to leave"))
    pressed = -math.inf  # when Ctrl-C was last pressed
    with _line_editing() as edited:
        while True:
            try:
                session.enter(_input(edited))
                if session.stopped:
                    pressed = time.monotonic()
            except UserError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                print()
                now = time.monotonic()
                if now - pressed < LEAVE_WITHIN_S:
                    return INTERRUPTED
                pressed = now
                say("Ctrl-C once more leaves")
            except EOFError:
                print()
                return 0
            except Quit:
                return 0


def _input(edited: bool) -> str:
    """One message of the user: a line, or several of which all but the last end in a backslash."""
    lines: list[str] = []
    while True:
        line = input(_prompt("… " if lines else "> ", edited))
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _prompt(text: str, edited: bool) -> str:
    from nano3.cli.chat_session import escape

    bold, end = escape("\x1b[1m"), escape("\x1b[0m")
    if not bold:
        return text
    # readline must know which characters take no room.
    return f"\001{bold}\002{text}\001{end}\002" if edited else f"{bold}{text}{end}"


@contextlib.contextmanager
def _line_editing() -> Iterator[bool]:
    """Editing, history kept between conversations, and Tab for commands; False where Python has no readline."""
    try:
        import readline
    except ImportError:
        yield False
        return
    path = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims("\n")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)


def history_file() -> Path:
    """Where the lines entered are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "nano3" / "chat_history"


def _complete(text: str, number: int) -> str | None:
    from nano3.cli.chat_session import COMMANDS

    found = [f"{command} " for command in COMMANDS if text and command.startswith(text)]
    return found[number] if number < len(found) else None
