"""What `nano3 generate` and `nano3 chat` continue: prompts read from the command line, files and conversations."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.reading import decode, parse_json

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Prompt:
    """One thing to continue: exactly one of text, ids and messages is given."""

    text: str | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    name: Any = None
    """The `id` of its line in a prompts file."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as the engine takes it."""

    ids: tuple[int, ...]
    thinking_open: bool | None = None
    """The prompt ends inside a thinking part; None: plain text, in which no part is thinking."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer beside the model's own ends of text."""
    cache_at: tuple[int, ...] = ()
    """Length of the part that the conversation's next prompt will begin with."""


def one_prompt(text: str | None, file: str | None) -> Prompt:
    """The prompt given as text or in a file; `-`, or neither with something piped in, reads stdin. The line break that
    ends a file is no part of it.

    Raises:
        UserError: both, or neither at a terminal; not UTF-8.
    """
    if text is not None and file is not None:
        raise UserError("--prompt and --prompt-file contradict each other; give one of them")
    if text is not None and text != "-":
        return Prompt(text=text)
    if file is not None and file != "-":
        return Prompt(text=_read(Path(file)).removesuffix("\n"))
    if text is None and file is None and sys.stdin.isatty():
        raise UserError(
            "nothing to continue; give --prompt TEXT, --prompt-file FILE, --prompts-file FILE, or pipe it in"
        )
    found = _utf8(sys.stdin.buffer.read(), "stdin")
    if not found:
        raise UserError("nothing came from stdin; to begin with nothing, give --prompt ''")
    return Prompt(text=found.removesuffix("\n"))


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a JSONL file (`-`: stdin): a line is {"prompt": text or token ids} or {"messages": [...]},
    with an optional "id" that comes back in the result.

    Raises:
        UserError: a line out of form, or no line.
    """
    text = _utf8(sys.stdin.buffer.read(), "stdin") if path == "-" else _read(Path(path))
    where = "stdin" if path == "-" else path
    prompts = [_line(line, f"{where}, line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not prompts:
        raise UserError(f"{where}: no prompts; write one JSON object a line")
    return prompts


def _line(line: str, where: str) -> Prompt:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise UserError(f"{where}: give an object with either prompt or messages")
    if "messages" in row:
        if not isinstance(row["messages"], list) or not row["messages"]:
            raise UserError(f"{where}: messages is no list of messages")
        return Prompt(messages=tuple(row["messages"]), name=row.get("id"))
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return Prompt(text=prompt, name=row.get("id"))
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return Prompt(ids=tuple(prompt), name=row.get("id"))
    raise UserError(f"{where}: prompt is neither a text nor a list of token ids")


def as_chat(prompt: Prompt, system: str | None) -> Prompt:
    """A text as what the user says; `system` goes before messages that have no system prompt of their own."""
    messages = prompt.messages or ({"role": "user", "content": prompt.text or ""},)
    if system is not None and messages[0].get("role") not in ("system", "developer"):
        messages = ({"role": "system", "content": system}, *messages)
    return Prompt(messages=messages, name=prompt.name)


def encode_plain(tokenizer: Tokenizer, prompt: Prompt, raw: bool = False) -> Encoded:
    """Token ids of a text, begun as documents begin in training (docs/data.md), or exactly as written if `raw`:
    without a beginning, and with special tokens recognised. Token ids stay as they are."""
    if prompt.ids is not None:
        return Encoded(prompt.ids)
    text = prompt.text or ""
    ids = tokenizer.encode(text, special=True) if raw else [tokenizer.eos_id, *tokenizer.encode(text)]
    if not ids:
        raise UserError("prompt is empty; without --raw it may be")
    return Encoded(tuple(ids))


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], thinking: bool = True) -> Encoded:
    """Token ids of a conversation up to where its answer begins; special tokens written in messages are text.

    Args:
        tokenizer: whose chat template is used, if it has one.
        messages: in OpenAI form.
        thinking: the answer may begin with thinking.

    Raises:
        UserError: messages out of form.
    """
    from nano3.data.chat.encoder import ChatEncoder

    prompt = ChatEncoder(tokenizer).encode(messages, enable_thinking=thinking)
    end = tokenizer.token_id(END_OF_TURN)
    return Encoded(prompt.ids, prompt.thinking_open, stop_ids=() if end is None else (end,), cache_at=prompt.cache_at)


def _read(path: Path) -> str:
    return _utf8(path.read_bytes(), str(path))


def _utf8(data: bytes, where: str) -> str:
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text") from error
