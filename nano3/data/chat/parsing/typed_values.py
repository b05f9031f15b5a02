"""Values of tool arguments: from the text of a parameter to JSON, by the tool's schema."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nano3.data.chat.parsing.json_schema import json_types

LITERALS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
JSON_TYPES = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array", dict: "object"
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


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
    """JSON of a parameter's text. What does not read as one of `types` becomes a string, so nothing is lost; a null
    that nobody allowed stays null, for models write it where they leave a parameter out."""
    found = None if types == {"string"} else _reading(text.strip(), types)
    return dump(text) if found is None else found


def reads_as(text: str, types: frozenset[str]) -> bool:
    """Whether a text is a value of one of the types, none of which is a string."""
    return bool(types) and "string" not in types and _reading(text.strip(), types) is not None


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
    named = json_types(schema.get("type"))
    yield from named
    for option in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ()), *(schema.get("allOf") or ())):
        yield from _types(option, root, seen)
    reference = str(schema.get("$ref", ""))
    if reference and reference not in seen:
        seen.add(reference)
        yield from _types(_resolve(reference, root), root, seen)
    if not named:
        constants = [*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else ())]
        yield from (JSON_TYPES.get(type(constant), "null") for constant in constants)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """The part of the schema that "#/$defs/Name" refers to; None where there is none."""
    found: Any = root
    for key in reference.removeprefix("#/").split("/"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _reading(text: str, types: frozenset[str]) -> str | None:
    """JSON of a stripped text as one of the types (none: by its looks); None where the text itself is better."""
    word = _word(text, types)
    if word is not None:
        return word
    for read in (_json, _lenient_json, *((_literal, _number) if types else ())):
        try:
            value = read(text, types)
            found = dump(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if _fits(value, found, text, types):
            if isinstance(value, str):
                return _reading(value.strip(), types & {"array", "object"})
            # As it is written, so that no digit is lost.
            return text if read is _json and not _is_integer_in_disguise(value, types) else dump(_plain(value, types))
    return None


def _word(text: str, types: frozenset[str]) -> str | None:
    """Booleans and null; 1, 0 and words in capitals where nothing else may stand."""
    if text in LITERALS:
        kind = JSON_TYPES.get(type(LITERALS[text]), "null")
        if not types or kind in types or (kind == "null" and "string" not in types):
            return dump(LITERALS[text])
    if "boolean" not in types or "string" in types:
        return None
    digits = {} if types & {"integer", "number"} else {"1": "true", "0": "false"}
    return ({"true": "true", "false": "false"} | digits).get(text.lower())


def _json(text: str, types: frozenset[str]) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _lenient_json(text: str, types: frozenset[str]) -> Any:
    """JSON with line breaks inside strings."""
    return json.loads(text, parse_constant=_no_constant, strict=False)


def _literal(text: str, types: frozenset[str]) -> Any:
    """A Python literal, JSON's words in it included. A bare `1, 2` is a list only where nothing but a list may be."""
    value = ast.literal_eval(_JsonWords().visit(ast.parse(text, mode="eval")))
    if isinstance(value, tuple) and types - {"null"} != {"array"}:
        raise ValueError("a tuple")
    return value


def _number(text: str, types: frozenset[str]) -> Any:
    """Numbers that JSON writes otherwise: 007, +5, .5"""
    if not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    return int(text) if text.lstrip("+-").isdigit() else float(text)


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(LITERALS[node.id]) if node.id in LITERALS else node


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _fits(value: Any, written: str, text: str, types: frozenset[str]) -> bool:
    """Whether a reading is one of the types. Beside strings, and where the schema says nothing, a number must also be
    written as JSON writes it, or digits would be lost."""
    kind = JSON_TYPES.get(type(value), "")
    if kind == "string":
        # Encoded twice, as models do with nested values.
        return bool(types & {"array", "object"}) and "string" not in types and _is_container(value, types)
    free = not types or "string" in types
    if kind in ("integer", "number") and free:
        return written == text and (not types or kind in types or (kind == "integer" and "number" in types))
    if _is_integer_in_disguise(value, types) or (kind == "integer" and "number" in types):
        return True
    return bool(kind) if not types else kind in types


def _is_container(text: str, types: frozenset[str]) -> bool:
    return text.strip()[:1] in ("[", "{") and _reading(text.strip(), types & {"array", "object"}) is not None


def _is_integer_in_disguise(value: Any, types: frozenset[str]) -> bool:
    """A float without a fraction where only integers may stand."""
    return (
        isinstance(value, float) and value.is_integer() and "integer" in types and not types & {"number", "string"}
    )  # fmt: skip


def _plain(value: Any, types: frozenset[str]) -> Any:
    return int(value) if _is_integer_in_disguise(value, types) else value
