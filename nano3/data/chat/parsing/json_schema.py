"""A look at the JSON schemas that clients send, before anything is built from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_NESTED = 64
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "if", "then", "else")

JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_ALIASES = {
    "str": "string", "text": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean",
    "dict": "object", "list": "array", "tuple": "array",
}  # fmt: skip
"""Names of other languages that tools of benchmarks and frameworks carry."""


def json_types(kinds: Any) -> list[str]:
    """The types that a schema's `type` names, by their JSON names; a name that nobody knows says nothing."""
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    plain = [_ALIASES.get(name, name) for name in names if isinstance(name, str)]
    return [name for name in plain if name in JSON_TYPES]


def plain_types(schema: Any) -> Any:
    """A schema of tool parameters with JSON's names for its types; a type that nobody knows is left out."""
    if not isinstance(schema, Mapping):
        return schema
    plain = dict(schema)
    if (kinds := schema.get("type")) is not None:
        known = json_types(kinds)
        del plain["type"]
        if known:
            plain["type"] = known if isinstance(kinds, list) else known[0]
    for key in _MAPS:
        if isinstance(schema.get(key), Mapping):
            plain[key] = {name: plain_types(inner) for name, inner in schema[key].items()}
    for key in (*_LISTS, *_ONE):
        value = schema.get(key)
        if value is not None:
            plain[key] = [plain_types(inner) for inner in value] if isinstance(value, list) else plain_types(value)
    return plain


def check_schema(schema: Any, where: str) -> None:
    """Refuse a schema whose keywords are out of form or that is nested too deeply. What keywords mean, and whether
    they can be met, is for the grammar to say; a keyword of null is as one left out.

    Raises:
        ValueError: in one line, with the place in the schema.
    """
    if _deeper(schema, MOST_NESTED):
        raise ValueError(f"{where}: nested more than {MOST_NESTED} levels deep")
    _check(schema, where)
    if isinstance(schema, Mapping) and not isinstance(schema.get("required"), list | None):
        raise ValueError(f"{where}.required: must be a list of names")


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more levels than these."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for value in level for item in _items(value)]
        if not level:
            return False
    return True


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()


def _check(schema: Any, where: str) -> None:
    if isinstance(schema, bool) or schema is None:
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: must be a JSON schema object")
    kinds = schema.get("type")
    if not (kinds is None or isinstance(kinds, str) or _strings(kinds)):
        raise ValueError(f"{where}.type: must be a name or a list of names")
    if not isinstance(schema.get("enum"), list | None):
        raise ValueError(f"{where}.enum: must be a list of values")
    if isinstance(schema.get("required"), list) and not _strings(schema["required"]):
        raise ValueError(f"{where}.required: must be a list of names")
    for place, inner in _inner(schema, where):
        _check(inner, place)


def _inner(schema: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The schemas within a schema, and where they are."""
    for key in _MAPS:
        if not isinstance(schema.get(key), Mapping | None):
            raise ValueError(f"{where}.{key}: must be an object of schemas")
        yield from ((f"{where}.{key}.{name}", inner) for name, inner in (schema.get(key) or {}).items())
    for key in _LISTS:
        if not isinstance(schema.get(key), list | None):
            raise ValueError(f"{where}.{key}: must be a list of schemas")
        yield from ((f"{where}.{key}[{i}]", inner) for i, inner in enumerate(schema.get(key) or ()))
    for key in _ONE:
        # Older drafts have a list of schemas for items.
        if not isinstance(schema.get(key), list):
            yield f"{where}.{key}", schema.get(key)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
