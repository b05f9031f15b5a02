"""The two ways lines come in: typed at a terminal, with editing and a history, or piped."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nano3.chat.backends import INTERRUPTED
from nano3.chat.session import COMMANDS, Quit, Session, dim, escape, say
from nano3.config.errors import UserError

HISTORY_LINES = 1000
LEAVE_WITHIN_S = 3.0
"""Two Ctrl-C within this time leave."""


def read_lines(session: Session) -> int:
    """Piped input: a turn a line; the first error ends it."""
    with contextlib.suppress(Quit):
        for line in sys.stdin:
            session.enter(line.rstrip("\r\n"))
    return 0


def converse(session: Session) -> int:
    """A conversation with a person: messages and commands until they leave. Returns the exit code."""
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
    found = [f"{command} " for command in COMMANDS if text and command.startswith(text)]
    return found[number] if number < len(found) else None
