"""A conversation at the terminal: turns, commands, and how answers look."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nano3.chat.answer import cut_off_text, no_answer
from nano3.chat.backends import Backend, ChatSettings, Message
from nano3.config.errors import UserError

HELP = """\
/new              begin a new conversation
/retry            answer the last message again
/system TEXT      set the system prompt; /system shows it, /system - removes it
/thinking on|off  let the model think before it answers, or not
/save FILE        write the conversation (.json: messages; else Markdown)
/quit             leave (also /bye, /exit, Ctrl-D)
A line that ends in \\ goes on in the next one.
Ctrl-C stops an answer, and once more leaves."""
COMMANDS = ("/help", "/new", "/retry", "/system", "/thinking", "/save", "/quit")
ENDS = ("/quit", "/bye", "/exit")
"""All that leave; other programs for chats taught users the other two."""


class Quit(Exception):  # noqa: N818
    """The user wants to leave."""


class Session:
    """Messages so far, and what is done with each line that the user enters."""

    def __init__(self, backend: Backend, settings: ChatSettings, system: str | None, hide_thinking: bool) -> None:
        self.backend = backend
        self.settings = settings
        self.system = system
        self.messages: list[Message] = []
        self.stopped = False
        """The user stopped the last answer."""
        self._hide_thinking = hide_thinking
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(HELP),
            "/new": self._new,
            "/retry": self._retry,
            "/system": self._set_system,
            "/thinking": self._set_thinking,
            "/save": self._save,
            **dict.fromkeys(ENDS, self._quit),
        }

    def enter(self, line: str) -> None:
        """Do what a line says: a command, or a message to answer.

        Raises:
            UserError: a wrong command, or no answer.
            Quit: to leave.
        """
        self.stopped = False
        text = line.strip()
        name, _, rest = text.partition(" ")
        if not text:
            return
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name.startswith("/") and "/" not in name[1:]:
            raise UserError(f"{name}: no such command; /help lists them")
        else:
            self.messages.append({"role": "user", "content": line})
            self._answer()

    def _answer(self) -> None:
        """Show the answer to the messages while it comes; a stopped one is kept as far as it came."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        view = AnswerView(self._hide_thinking)
        answer = self.backend.answer([*system, *self.messages], self.settings)
        try:
            for piece in answer:
                view.add(piece.reasoning, piece.content, piece.tokens, piece.cut_off)
            view.end()
        except KeyboardInterrupt:
            self.stopped = True
            view.end("stopped")
        except BaseException:
            view.break_off()
            raise
        finally:
            getattr(answer, "close", lambda: None)()
        message: Message = {"role": "assistant", "content": view.content}
        self.messages.append(message | ({"reasoning": view.reasoning} if view.reasoning else {}))

    def _new(self, _: str) -> None:
        self.messages = []
        say("new conversation")

    def _retry(self, _: str) -> None:
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            raise UserError("/retry: nothing to answer yet")
        self._answer()

    def _set_system(self, text: str) -> None:
        if text:
            self.system = None if text == "-" else text
        say(f"system prompt: {self.system or 'none'}")

    def _set_thinking(self, text: str) -> None:
        if text not in ("on", "off", ""):
            raise UserError("/thinking: say on or off")
        if text:
            self.settings = replace(self.settings, thinking=text == "on")
        thinks = self.backend.thinks if self.settings.thinking is None else self.settings.thinking
        say(f"thinking: {'as the server has it' if thinks is None else 'on' if thinks else 'off'}")

    def _save(self, text: str) -> None:
        if not text:
            raise UserError("/save: which file? /save FILE")
        path = Path(text).expanduser()
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.messages]
        body = (
            json.dumps(messages, indent=2, ensure_ascii=False) + "\n" if path.suffix == ".json" else _markdown(messages)
        )
        try:
            path.write_text(body, encoding="utf-8")
        except OSError as error:
            raise UserError(f"/save {path}: {(error.strerror or str(error)).lower()}") from error
        say(f"saved {len(messages)} messages in {path}")

    def _quit(self, _: str) -> None:
        raise Quit


class AnswerView:
    """Writes one answer: thinking dimmed, or as a line that counts seconds, then the text."""

    def __init__(self, hide_thinking: bool) -> None:
        self.content = ""
        self.reasoning = ""
        self._terminal = sys.stdout.isatty()
        self._hide = hide_thinking or not self._terminal
        self._start = time.perf_counter()
        self._first: float | None = None
        self._tokens: int | None = None
        self._cut_off = False
        self._dimmed = False
        self._ticked = 0.0

    def add(self, reasoning: str, content: str, tokens: int | None, cut_off: bool) -> None:
        """Write some more."""
        self._cut_off |= cut_off
        self._tokens = self._tokens if tokens is None else tokens
        if (reasoning or content) and self._first is None:
            self._first = time.perf_counter() - self._start
        if reasoning:
            self._think(reasoning)
        if content:
            self._begin_content()
            self.content += content
            write(content)

    def end(self, note: str = "") -> None:
        """Finish the answer's last line; on a terminal say how it went."""
        self._stop_dim()
        if self._terminal and self._hide and self.reasoning and not self.content:
            write("\r\x1b[K")
        if (self.content or (self.reasoning and not self._hide)) and not self.content.endswith("\n"):
            write("\n")
        if self._terminal:
            write(dim(joined(self._facts(note), columns())) + "\n")
        elif not self.content:
            write("\n")  # one answer a line, an empty one too
            say(note or no_answer(bool(self.reasoning), self._cut_off, self._tokens))

    def break_off(self) -> None:
        """The answer ends in an error, which stands on a line of its own."""
        self._stop_dim()
        if self.content or self.reasoning:
            write("\n")

    def _think(self, text: str) -> None:
        self.reasoning += text
        if not self._hide:
            if not self._dimmed:
                self._dimmed = True
                write(escape("\x1b[2m"))
            write(text)
        elif self._terminal and time.perf_counter() - self._ticked > 0.1:
            self._ticked = time.perf_counter()
            write("\r\x1b[K" + dim(f"thinking … {self._ticked - self._start:.1f} s"))

    def _begin_content(self) -> None:
        if self.content or not self.reasoning:
            return
        if not self._hide:
            self._stop_dim()
            write("\n\n")
        elif self._terminal:
            write("\r\x1b[K" + dim(f"thought for {time.perf_counter() - self._start:.1f} s") + "\n")

    def _stop_dim(self) -> None:
        if self._dimmed:
            self._dimmed = False
            write(escape("\x1b[0m"))

    def _facts(self, note: str) -> list[str]:
        facts = [note] if note else []
        if self.reasoning and not self.content:
            facts.append("no answer after the thinking")
        if self._cut_off:
            facts.append(cut_off_text(self._tokens))
        if self._tokens:
            if not self._cut_off:
                facts.append(f"{self._tokens:,} tokens")
            seconds = time.perf_counter() - self._start - (self._first or 0.0)
            if self._tokens > 1 and self._first is not None and seconds > 0:
                facts.append(f"{(self._tokens - 1) / seconds:.1f} tokens/s")
        if self._first is not None:
            facts.append(f"first token {self._first:.2f} s")
        return facts or ["empty answer"]


def say(text: str) -> None:
    """Tell the user something that is no part of an answer; a terminal gets no broken words."""
    if sys.stderr.isatty():
        lines = (textwrap.wrap(line, columns(), break_long_words=False, break_on_hyphens=False)
                 for line in text.splitlines())  # fmt: skip
        text = "\n".join(part for line in lines for part in line)
    print(text, file=sys.stderr, flush=True)


def joined(facts: Sequence[str], width: int) -> str:
    """Facts with dots between, broken only between them, as lines of at most `width` where that can be."""
    lines = [""]
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
        if lines[-1] and len(longer) > width:
            lines.append(fact)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def columns() -> int:
    """Width of the terminal."""
    return shutil.get_terminal_size().columns


def write(text: str) -> None:
    """Some of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def dim(text: str) -> str:
    """The text less bright, where the terminal can show that."""
    return f"{escape(chr(27) + '[2m')}{text}{escape(chr(27) + '[0m')}"


def escape(sequence: str) -> str:
    """An escape sequence for looks, or nothing where the user wants none."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return "" if plain else sequence


def _markdown(messages: list[Message]) -> str:
    parts = []
    for message in messages:
        thinking = message.get("reasoning")
        folded = f"<details><summary>Thinking</summary>\n\n{thinking.strip()}\n\n</details>\n\n" if thinking else ""
        parts.append(f"## {message['role'].capitalize()}\n\n{folded}{message['content'].strip()}\n")
    return "\n".join(parts)
