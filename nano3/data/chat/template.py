"""Chat templates: our own and those of loaded models, rendered in Jinja's sandbox."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.data.chat.marks import END_WRITTEN, WRITTEN
from nano3.data.chat.messages import normal_messages, normal_tools, one_line

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext

RESERVED = ("messages", "tools", "add_generation_prompt")
"""Variables that a mapping of template variables cannot set."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


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
            self._plain = _compiled(text, marked=False)
        # Python's own: `break` outside a loop, a lone surrogate, NUL, blocks nested too deeply.
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError) as error:
            raise UserError(f"chat template cannot be compiled: {one_line(error)}") from error

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
            kwargs: enable_thinking, truncate_history_thinking, reasoning_budget, and whatever else a template reads,
                each by itself or in one mapping `chat_template_kwargs`; by itself wins, None is left to the mapping.

        Raises:
            UserError: messages or tools out of form, or the template refuses them.
        """
        values = {**kwargs, "messages": normal_messages(messages), "tools": normal_tools(tools) or None}
        return self.fill(values, add_generation_prompt)

    def fill(self, values: Mapping[str, Any], add_generation_prompt: bool = True, *, marked: bool = False) -> str:
        """`render` of messages and tools that are normal already (`normal_messages`, `normal_tools`).

        Args:
            values: messages, tools and the template's variables.
            add_generation_prompt: end where the assistant's answer begins.
            marked: put the signs of nano3.data.chat.marks around what generation blocks enclose.

        Raises:
            UserError: the template refuses them.
        """
        import jinja2

        given = {**self._variables_of(values), "add_generation_prompt": add_generation_prompt}
        try:
            return (self._marked if marked else self._plain).render(given)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"chat template refuses this conversation: {one_line(error)}") from error

    def _variables_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, those of `chat_template_kwargs` beside them, and the template's own where these say nothing."""
        bundle = values.get("chat_template_kwargs")
        bundle = bundle if isinstance(bundle, Mapping) else {}
        base = self.variables | {
            name: value for name, value in bundle.items() if value is not None and name not in RESERVED
        }
        return base | {name: value for name, value in values.items() if value is not None or name not in base}

    @functools.cached_property
    def _marked(self) -> jinja2.Template:
        return _compiled(self.text, marked=True)

    @property
    def has_generation_blocks(self) -> bool:
        """It marks what the assistant writes with {% generation %}."""
        return _GENERATION.search(self.text) is not None


@functools.cache
def default_text() -> str:
    """Source of the project's own template, as a model folder's chat_template.jinja carries it."""
    return resources.files("nano3.data.chat").joinpath("chat_template.jinja").read_text("utf-8")


@functools.lru_cache(maxsize=16)
def _compiled(text: str, marked: bool) -> jinja2.Template:
    """Compiling takes 45 ms, and a stage opens the template of the same model several times."""
    return _environment(marked).from_string(text)


@functools.cache
def _environment(marked: bool) -> jinja2.Environment:
    """Settings, filters and functions that transformers gives to chat templates."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_blocks(marked)]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _generation_blocks(marked: bool) -> type[jinja2.ext.Extension]:
    from jinja2 import ext, nodes

    def sign(text: str) -> list[nodes.Node]:
        return [nodes.Output([nodes.TemplateData(text)])] if marked else []

    class GenerationBlocks(ext.Extension):
        """{% generation %} encloses what the assistant writes, the text to train on; in a prompt it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            """The block's contents in a scope of their own."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope([*sign(WRITTEN), *body, *sign(END_WRITTEN)], lineno=line)

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
