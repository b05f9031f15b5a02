"""Values of tool arguments: from the text of a parameter to JSON, by the tool's schema."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LITERALS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def parameter_types(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, dict[str, frozenset[str]]]:
    """JSON types that each function allows for each of its parameters; the empty set where the schema says nothing."""
    types = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        schema = function.get("parameters") or {}
        properties = schema.get("properties") or {}
        types[function.get("name", "")] = {
            name: frozenset(_types(property_, schema, set())) for name, property_ in properties.items()
        }
    return types


def json_value(text: str, types: frozenset[str]) -> str:
    """JSON of a parameter's text. What does not read as one of `types` becomes a string, so nothing is lost."""
    if types == {"string"}:
        return dump(text)
    for value in _readings(text, types):
        try:
            return dump(value)
        except (TypeError, ValueError, RecursionError):
            continue
    return dump(text)


def dump(value: Any) -> str:
    """JSON text that is valid JSON and valid Unicode.

    Raises:
        TypeError, ValueError, RecursionError: not a value that JSON has.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, from an escape in the model's own JSON.
        return json.dumps(value, allow_nan=False)
    return text


def _types(schema: Any, root: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """Types that a schema names; `seen` are the references followed, each once, for a schema may refer to itself."""
    if not isinstance(schema, Mapping):
        return
    named = schema.get("type")
    yield from [named] if isinstance(named, str) else named or []
    for option in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ()), *(schema.get("allOf") or ())):
        yield from _types(option, root, seen)
    reference = str(schema.get("$ref", ""))
    if reference and reference not in seen:
        seen.add(reference)
        yield from _types(_resolve(reference, root), root, seen)
    if named is None:
        constants = [*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else ())]
        yield from (JSON_TYPES.get(type(constant), "null") for constant in constants)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """The part of the schema that "#/$defs/Name" refers to; None where there is none."""
    found: Any = root
    for key in reference.removeprefix("#/").split("/"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _readings(text: str, types: frozenset[str]) -> Iterator[Any]:
    """Values that the text may stand for, the likeliest first."""
    stripped = text.strip()
    # Without a schema Python literals are too bold a guess.
    readers = (LITERALS.__getitem__, json.loads, *((_python_literal,) if types else ()))
    for read in readers:
        try:
            value = read(stripped)
        except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
            value = int(value)
        if _fits(value, types):
            yield value


def _fits(value: Any, types: frozenset[str]) -> bool:
    """Whether a reading is better than the text itself: beside strings only values of the other allowed types are."""
    if types and "string" not in types:
        return True
    kind = "null" if value is None else JSON_TYPES.get(type(value), "")
    return kind != "string" and (not types or kind in types or (kind == "integer" and "number" in types))


def _python_literal(text: str) -> Any:
    return ast.literal_eval(text)
