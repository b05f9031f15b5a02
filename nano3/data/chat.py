"""Conversations to prompts: our chat template and those of loaded models, rendered in Jinja's sandbox."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext

    from nano3.data.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
TURN, THINK, END_THINK = "<|im_start|>", "<think>", "</think>"
MARK, OWN_MARK = "\ufdd0", "\ufdd0\ufdd1"
"""A noncharacter that stands where text must be cut before it is encoded, and what is written for one in the text."""
_PROBE = ({"role": "user", "content": "a"},)


class ChatTemplate:
    """A Jinja chat template, compiled once; whatever it tries, it runs in a sandbox."""

    def __init__(self, text: str, variables: Mapping[str, Any] | None = None) -> None:
        """Compile `text`.

        Args:
            text: Jinja source, as in chat_template.jinja.
            variables: what every rendering sees beside the messages (bos_token and the like).

        Raises:
            UserError: not a Jinja template.
        """
        import jinja2

        self.text = text
        self.variables = dict(variables or {})
        try:
            self._compiled = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"chat template cannot be compiled: {_one_line(error)}") from error

    @classmethod
    def default(cls) -> ChatTemplate:
        """The project's own template."""
        return cls(default_text())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Prompt of a conversation in OpenAI form, to be read; `ChatEncoder` makes token ids of it, safely.

        Args:
            messages: role and content (a string, a list of text parts, None), and with an assistant's: `reasoning` or
                `reasoning_content`, `tool_calls` with arguments as an object or as JSON text.
            tools: function definitions, with or without the {"type": "function"} wrapper.
            add_generation_prompt: end where the assistant's answer begins.
            kwargs: enable_thinking, truncate_history_thinking, reasoning_budget, and whatever else a template reads.

        Raises:
            UserError: messages or tools out of form, or the template refuses them.
        """
        values = {**kwargs, "messages": normal_messages(messages), "tools": normal_tools(tools) or None}
        return self.fill(values, add_generation_prompt)

    def fill(self, values: Mapping[str, Any], add_generation_prompt: bool = True) -> str:
        """`render` of messages and tools that are normal already (`normal_messages`, `normal_tools`).

        Raises:
            UserError: the template refuses them.
        """
        import jinja2

        values = {**self.variables, **values, "add_generation_prompt": add_generation_prompt}
        try:
            return self._compiled.render(values)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"chat template refuses this conversation: {_one_line(error)}") from error


class TooLongError(UserError):
    """A conversation of more text than can fit."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model sees it."""

    ids: tuple[int, ...]
    thinking_open: bool
    """The answer begins inside a thinking part."""
    cache_at: tuple[int, ...] = ()
    """Length of the part that the next turn's prompt will begin with."""


class ChatEncoder:
    """Conversations to token ids. Only the template opens and closes turns: a special token that is written in a
    message, a tool or a variable is text like any other."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        """Encode for `tokenizer`, by its own template unless another is given.

        Raises:
            UserError: its template cannot be compiled.
        """
        self.template = template or template_for(tokenizer)
        self._tokenizer = tokenizer
        added = tokenizer.inner.get_added_tokens_decoder().values()
        # Templates look for the thinking tags in messages, so those stay whole even where they are special.
        tags = (THINK, END_THINK)
        self._special = _beginnings(token.content for token in added if token.special and token.content not in tags)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> ChatPrompt:
        """Token ids of a conversation; the arguments are those of `ChatTemplate.render`.

        Args:
            max_length: most characters; more are refused before they are encoded.

        Raises:
            TooLongError: more than `max_length`.
            UserError: as `ChatTemplate.render`.
        """
        normal = normal_messages(messages)
        # Of an assistant's text templates may leave out much.
        _check_length(sum(len(m["content"]) for m in normal if m["role"] != "assistant"), max_length)
        values = self._marked({**kwargs, "messages": normal, "tools": normal_tools(tools) or None})
        text = self.template.fill(values, add_generation_prompt)
        _check_length(len(text), max_length)
        ids = self._ids(text)
        shared = self._shared(ids, text, kwargs) if add_generation_prompt else ()
        return ChatPrompt(tuple(ids), thinking_open(text), shared)

    def _marked(self, value: Any) -> Any:
        """The value with a mark inside each special token that its strings spell out."""
        if isinstance(value, str):
            return self._special.sub(lambda found: found[0] + MARK, value.replace(MARK, OWN_MARK))
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(inner) for key, inner in value.items()}
        return [self._marked(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _ids(self, text: str) -> list[int]:
        # Cut at the marks, so that no special token is whole but those of the template.
        parts = [part.replace(OWN_MARK, MARK) for part in re.split(rf"{MARK}(?!{OWN_MARK[1]})", text)]
        return [token for ids in self._tokenizer.encode_batch(parts, special=True) for token in ids]

    def _shared(self, ids: Sequence[int], text: str, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """Tokens before the opening of the answer, where the tokens part there."""
        opening = self._opening(kwargs)
        if not opening or not text.endswith(opening):
            return ()
        tokens = self._ids(opening)
        length = len(ids) - len(tokens)
        return (length,) if length > 0 and list(ids[length:]) == tokens else ()

    def _opening(self, kwargs: Mapping[str, Any]) -> str:
        """How the template opens an answer: found with a short conversation, since rendering a long one takes time."""
        try:
            values = {**self._marked(kwargs), "messages": normal_messages(_PROBE), "tools": None}
            text, history = self.template.fill(values), self.template.fill(values, False)
        except UserError:
            return ""
        return text.removeprefix(history) if text.startswith(history) else ""


def _check_length(length: int, most: int | None) -> None:
    if most is not None and length > most:
        raise TooLongError(f"the conversation has {length} characters or more; at most {most} can fit")


def _beginnings(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds the first letter of each of the tokens, wherever the rest follows. (One letter alone cannot be cut.)"""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()) or "(?!)")


@functools.cache
def default_text() -> str:
    """Source of the project's own template, as a model folder's chat_template.jinja carries it."""
    return resources.files("nano3.data").joinpath("chat_template.jinja").read_text("utf-8")


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The template that came with the tokenizer (as a file, or inside its configuration), else the project's own."""
    text = tokenizer.chat_template or _configured(tokenizer.config.get("chat_template"))
    if not text:
        return ChatTemplate.default()
    return ChatTemplate(text, _token_variables(tokenizer))


def thinking_open(rendered: str) -> bool:
    """Whether what follows this prompt is inside a thinking part."""
    _, turn, last = rendered.rpartition(TURN)
    if turn:
        return last.startswith("assistant") and last.rfind(THINK) > last.rfind(END_THINK)
    # In an unknown format only the very end tells: a user may have written the tag.
    return rendered.rstrip().endswith(THINK)


def normal_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the one form that templates expect: content a string, arguments an object, role system for
    developer, reasoning under both of its names.

    Raises:
        UserError: messages out of form.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError("messages is empty or no list; give at least one message")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def normal_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as {"type": "function", "function": ...}.

    Raises:
        UserError: a tool without a name, or with parameters that are no JSON schema object.
    """
    normal = []
    for i, tool in enumerate(tools or ()):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise UserError(f"tools[{i}] names no function; give {{'type': 'function', 'function': {{'name': ...}}}}")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise UserError(f"tools[{i}] ({function['name']}): parameters is no JSON schema object")
        normal.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return normal


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is no object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: role is {role!r}; it must be one of {', '.join(ROLES)}")
    normal = {**message, "role": "system" if role == "developer" else role}
    normal["content"] = _text(message.get("content"), f"{where}.content")
    if role != "assistant":
        return normal
    for name in ("reasoning_content", "reasoning"):
        if message.get(name):
            reasoning = _text(message[name], f"{where}.{name}")
            return _with_calls(normal | {"reasoning_content": reasoning, "reasoning": reasoning}, where)
    return _with_calls(normal, where)


def _with_calls(message: dict[str, Any], where: str) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UserError(f"{where}.tool_calls is no list")
    return message | {"tool_calls": [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]}


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not _is_name(function.get("name")):
        raise UserError(f"{where} names no function")
    arguments = _arguments(function.get("arguments"), f"{where} ({function['name']}): arguments")
    outer = call if "function" in call else {}
    return {**outer, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {_one_line(error)}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where} is not a JSON object")
    return dict(arguments)


def _text(content: Any, where: str) -> str:
    """Content as one string; parts are put on lines of their own."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UserError(f"{where} is of type {type(content).__name__}; give a string or a list of text parts")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise UserError(f"{where} is of type {kind}; only text parts can be read")
    return text


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _configured(template: Any) -> str:
    """tokenizer_config.json has one template, or a list of named ones."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default") or next(iter(named.values()), "")
    return template or ""


def _token_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call bos_token and so on; a name that the configuration leaves out stays undefined."""
    variables = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = tokenizer.config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            variables[name] = token
    return variables


@functools.cache
def _environment() -> jinja2.Environment:
    """Settings, filters and functions that transformers gives to chat templates."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_blocks()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _generation_blocks() -> type[jinja2.ext.Extension]:
    from jinja2 import ext, nodes

    class GenerationBlocks(ext.Extension):
        """Some templates mark the text to train on with {% generation %}; for a prompt that changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            """The block's contents in a scope of their own."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationBlocks


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter would escape <, > and & for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
