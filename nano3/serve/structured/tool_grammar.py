"""Grammars of tool calls in the chat template's format, by the tools' schemas: the model has no choice but to call, or
calls as it likes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat.parsing.json_schema import plain_types
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.masks import spaced
from nano3.engine.request import Grammar
from nano3.serve.structured.string_forms import (
    CLOSING,
    LENGTHS,
    NEXT_TAG,
    NotEnforcedError,
    expressions,
    intersection,
    is_formed,
    without,
)

BOOLEANS = ("true", "false", "True", "False")
"""JSON's words, and those that the chat template writes for earlier calls."""
FORM_KEYS = (*LENGTHS, "pattern", "format")
OPENER = "<tool_call>\n<function="
"""What ends an open thinking part: a model may think about <tool_call> alone."""
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
NO_TAGS: Mapping[str, int] = MappingProxyType({})
"""Of a tokenizer that writes all tags letter by letter."""
_FREE_TEXT = rf"free_text[lazy]: /(.|\n)*\n<\/parameter>\n/ & {without(CLOSING + NEXT_TAG)}"


def tag_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The tags that are tokens of their own."""
    return {tag: found for tag in TAGS if (found := tokenizer.token_id(tag)) is not None}


def call_grammar(
    tools: Sequence[dict[str, Any]],
    *,
    several: bool,
    after_thinking: bool,
    answer: Grammar | None = None,
    tags: Mapping[str, int] = NO_TAGS,
) -> Grammar:
    """The output is a call of one of the tools.

    Args:
        tools: in OpenAI's form.
        several: calls may follow one another.
        after_thinking: the thinking part before the calls is free.
        answer: instead of calls, the output may be an answer of this form; no Lark grammar.
        tags: the tokenizer's `tag_ids`: a tag may be written as one token or letter by letter.

    Raises:
        UserError: a strict function wants a string of a form that cannot be enforced.
    """
    names = " | ".join(f"tool_{i}" for i in range(len(tools)))
    rest = r' ("\n" call)*' if several else ""
    start = "start: calls | answer" if answer else "start: calls"
    rules = [start, rf'calls: "\n"? call{rest} "\n"?', f"call: {names}", *_answer_rules(answer)]
    for i, tool in enumerate(tools):
        function = tool["function"]
        head = _quote(f"\n<function={function['name']}>\n")
        rules += _tool_rules(f"tool_{i}", function, f"{_tag('<tool_call>', tags)} {head}", tags)
    return Grammar("lark", "\n".join([*rules, _FREE_TEXT]) + "\n", after_thinking, OPENER)


def watched_grammar(
    tools: Sequence[dict[str, Any]], *, after_thinking: bool, tags: Mapping[str, int] = NO_TAGS
) -> Grammar | None:
    """The output is free text, but in each call of a strict tool the parameters are of its schema; None where no tool
    is strict.

    The model decides whether to call. Its `<function=NAME>` is where a call begins, with <tool_call> before it or not.

    Args:
        tools: in OpenAI's form.
        after_thinking: as `call_grammar`.
        tags: as `call_grammar`.

    Raises:
        UserError: as `call_grammar`.
    """
    strict = [tool["function"] for tool in tools if tool["function"].get("strict")]
    if not strict:
        return None
    heads = [rf"<function={_regex(function['name'])}[ \t]*>" for function in strict]
    names = " | ".join(f"tool_{i}" for i in range(len(strict)))
    # No two TEXTs meet without a tag between them: a head could be spread over both.
    tag = f" | TEXT? ({' | '.join(f'<[{token}]>' for token in tags.values())}) turn" if tags else ""
    rules = ["start: turn", f"turn: TEXT? | ({names}) turn{tag}"]
    for i, (function, head) in enumerate(zip(strict, heads, strict=True)):
        rules += _tool_rules(f"tool_{i}", function, f'head_{i} "\\n"', tags)
        rules.append(rf"head_{i}[lazy]: /(.|\n)*{head}/")
    rules.append(rf"TEXT: /(.|\n)+/ & ~/(.|\n)*({'|'.join(heads)})(.|\n)*/")
    return Grammar("lark", "\n".join([*rules, _FREE_TEXT]) + "\n", after_thinking, OPENER)


def _answer_rules(answer: Grammar | None) -> list[str]:
    if answer is None:
        return []
    if answer.kind == "json_object":
        return [f"answer: {_json({'type': 'object'})}"]
    if answer.kind == "json_schema":
        return [f"answer: {_json(json.loads(answer.value))}"]
    if answer.kind == "choice":
        return ["answer: " + " | ".join(_quote(text) for text in json.loads(answer.value))]
    assert answer.kind == "regex"
    import llguidance

    return [f"answer: /{llguidance.regex_to_lark(answer.value)}/"]


def _tag(tag: str, ids: Mapping[str, int]) -> str:
    """Lark expression of a tag, as text or as its token."""
    return f"({_quote(tag)} | <[{ids[tag]}]>)" if tag in ids else _quote(tag)


def _tool_rules(rule: str, function: dict[str, Any], head: str, tags: Mapping[str, int]) -> Iterator[str]:
    """Rules of one tool: its required parameters always, the others at will, in the order of the schema.

    `head`: Lark expression of the call's beginning.
    """
    schema = plain_types(function.get("parameters") or {})
    properties = dict(schema.get("properties") or {})
    required = set(schema.get("required") or ())
    for name in schema.get("required") or ():
        properties.setdefault(name, {})
    parameters = [f"{rule}_{i}{'' if name in required else '?'}" for i, name in enumerate(properties)]
    tail = [_quote("</function>\n"), _tag("</tool_call>", tags)]
    yield f"{rule}: {' '.join([head, *parameters, *tail])}"
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for i, (name, value) in enumerate(properties.items()):
        opening = _quote(f"<parameter={name}>\n")
        values = _Values(definitions, f"{rule}_{i}", bool(function.get("strict")))
        try:
            yield f"{rule}_{i}: {opening} {values.of(value)}"
        except NotEnforcedError as error:
            raise UserError(f"{function['name']}.{name}: {error}, and the function is strict") from error
        yield from values.terminals


class _Values:
    """What may stand between a parameter's tags, its closing tag included."""

    def __init__(self, definitions: dict[str, Any], rule: str, strict: bool) -> None:
        """`strict`: what cannot be enforced is an error; else such strings are free text."""
        self.terminals: list[str] = []
        self._definitions, self._rule, self._strict = definitions, rule, strict

    def of(self, schema: Any) -> str:
        """Lark expression of a schema's values."""
        schema = _resolved(schema, self._definitions)
        closing = _quote("\n</parameter>\n")
        options = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        if options and all(isinstance(option, str) for option in options):
            return f"({' | '.join(_quote(option) for option in options)}) {closing}"
        if _takes_strings(schema, self._definitions, set()):
            return self._strings(schema)
        if schema.get("type") == "boolean" and not options:
            return f"({' | '.join(_quote(word) for word in BOOLEANS)}) {closing}"
        return f"{_json(schema | self._definitions)} {closing}"

    def _strings(self, schema: dict[str, Any]) -> str:
        """Of a schema that allows strings: these in their forms, or other values."""
        strings, others = _split(schema, self._definitions)
        try:
            forms = [intersection(expressions(member)) if is_formed(member) else "" for member in strings]
        except NotEnforcedError:
            if self._strict:
                raise
            return "free_text"
        if not all(forms):
            return "free_text"
        return f"({' | '.join([*map(self._terminal, forms), *(f'({self.of(member)})' for member in others)])})"

    def _terminal(self, form: str) -> str:
        name = f"{self._rule}_text_{len(self.terminals)}"
        self.terminals.append(f'{name}[lazy]: {form} "\\n</parameter>\\n"')
        return name


def _split(schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The alternatives of a schema that are strings, and the others."""
    kinds = schema.get("type")
    members = schema.get("anyOf") or schema.get("oneOf")
    if kinds is None and members:
        outer = {key: value for key, value in schema.items() if key in FORM_KEYS}
        pairs = [_split(outer | _resolved(member, definitions), definitions) for member in members]
        return [one for strings, _ in pairs for one in strings], [one for _, others in pairs for one in others]
    kinds = [kinds] if isinstance(kinds, str) else kinds or ["string"]
    others = [schema | {"type": kind} for kind in kinds if kind != "string"]
    return ([schema | {"type": "string"}] if "string" in kinds else []), others


def _takes_strings(schema: Any, definitions: dict[str, Any], seen: set[str]) -> bool:
    """Whether a string is a value of this schema; strings are written bare, so anything goes. `seen` are the references
    followed, each once, for a schema may refer to itself."""
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        if schema["$ref"] in seen:
            return False
        seen.add(schema["$ref"])
    schema = _resolved(schema, definitions)
    kinds = schema.get("type")
    if kinds is not None:
        return "string" in ([kinds] if isinstance(kinds, str) else kinds)
    members = schema.get("anyOf") or schema.get("oneOf") or []
    if members:
        return any(_takes_strings(member, definitions, seen) for member in members)
    return not schema.keys() & {"enum", "const", "properties", "items", "allOf", "$ref"}


def _resolved(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a reference into the definitions, itself where there is none."""
    seen: set[str] = set()
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and schema["$ref"] not in seen:
        seen.add(schema["$ref"])
        parts = schema["$ref"].removeprefix("#/").split("/")
        found: Any = definitions
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            break
        schema = found
    return schema if isinstance(schema, dict) else {}


def _json(schema: Any) -> str:
    return f"%json {json.dumps(spaced(schema), ensure_ascii=False)}"


def _regex(text: str) -> str:
    """Regular expression of a text, for Lark."""
    return re.escape(text).replace("/", r"\/")


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
