"""Lengths, patterns and formats of strings in tool arguments, which are written without quotes, as Lark terminals."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

LENGTHS = ("minLength", "maxLength")
_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|[12][0-9]))"
)
_DATE = rf"[0-9]{{4}}-{_DAY}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}[Tt]{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,7}}",
    "email": rf"[A-Za-z0-9_+-]{{1,32}}(?:\.[A-Za-z0-9_+-]{{1,32}}){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,5}}",
}
NOT_ENFORCED = frozenset({
    "duration", "idn-email", "idn-hostname", "ipv6", "iri", "iri-reference", "json-pointer", "regex",
    "relative-json-pointer", "uri", "uri-reference", "uri-template",
})  # fmt: skip
"""Formats of JSON Schema that are not enforced; any other name is a mere note."""
CLOSING = r"<\/parameter>"
NEXT_TAG = r"[ \t\r\n]*<(parameter=|\/function>|\/tool_call>|tool_call>)"
"""What makes a closing tag before it the end of a value, for Lark."""
_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


class NotEnforcedError(ValueError):
    """A form that nano3 cannot enforce on text without quotes."""


def is_formed(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says more of a string than that it is one."""
    formats = (*FORMATS, *NOT_ENFORCED)
    return "pattern" in schema or any(name in schema for name in LENGTHS) or schema.get("format") in formats


def expressions(schema: Mapping[str, Any]) -> list[str]:
    """Regular expressions that a string must match from end to end, all of them.

    Raises:
        NotEnforcedError: a format or pattern that cannot be enforced.
    """
    found = []
    if any(name in schema for name in LENGTHS):
        least, most = (_length(schema, name) for name in LENGTHS)
        if most is not None and most < (least or 0):
            raise NotEnforcedError(f"maxLength {most} is less than minLength {least}")
        found.append(f"(?s:.{{{least or 0},{'' if most is None else most}}})")
    if "pattern" in schema:
        found.append(_searched(schema["pattern"]))
    form = schema.get("format")
    if form in NOT_ENFORCED:
        raise NotEnforcedError(f"the format {form!r} cannot be enforced; {', '.join(FORMATS)} can")
    if form in FORMATS:
        found.append(FORMATS[form])
    return found


def intersection(forms: list[str]) -> str:
    """Lark expression of the texts that match all of them and hold no tag that ends a value.

    Raises:
        NotEnforcedError: an expression is not understood, or no text matches all.
    """
    import llguidance

    lark = f"({' & '.join(f'/{llguidance.regex_to_lark(form)}/' for form in forms)} & {without(CLOSING)})"
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {lark}")
    matcher = llguidance.LLMatcher(_bytes_tokenizer(), grammar, log_level=0)
    if not matcher.is_error() and not matcher.is_accepting():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise NotEnforcedError(
            f"no text can have its form, or its pattern is not understood ({' and '.join(forms)[:200]})"
        )
    return lark


def without(end: str) -> str:
    """Lark expression of the texts in which a parser sees no end of the value, be it `end`, a line that opens a
    parameter, or a call's end. What follows one would be read as a parameter or call without the schema's hold."""
    call_end = r"<\/function>[ \t\r\n]*<\/tool_call>"
    # As one expression llguidance would find too late, or never, that a text is past all hope.
    return rf"~/(.|\n)*({end}|\n<parameter=|{call_end})(.|\n)*/ & ~/<parameter=(.|\n)*/"


@functools.cache
def _bytes_tokenizer() -> Any:
    import llguidance

    return llguidance.LLTokenizer("byte")


def _length(schema: Mapping[str, Any], name: str) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise NotEnforcedError(f"{name} must be a whole number, at least 0")
    return int(value)


def _searched(pattern: Any) -> str:
    """A pattern that need only be found, as JSON Schema has it, as one that matches from end to end."""
    if not isinstance(pattern, str):
        raise NotEnforcedError("pattern must be a string")
    parts = _PARTS.findall(pattern)
    begins, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
    inner = parts[begins : len(parts) - ends]
    if "^" in inner or "$" in inner or ((begins or ends) and _has_alternatives(inner)):
        raise NotEnforcedError(
            f"the pattern {pattern[:100]!r} cannot be enforced; ^ and $ may stand at its ends only, around "
            "(?:...) where it has alternatives"
        )
    return f"{'' if begins else '(?s:.*)'}(?:{''.join(inner)}){'' if ends else '(?s:.*)'}"


def _has_alternatives(parts: list[str]) -> bool:
    """Whether there is a | outside of all groups."""
    depth = 0
    for part in parts:
        depth += (part == "(") - (part == ")")
        if part == "|" and depth == 0:
            return True
    return False
