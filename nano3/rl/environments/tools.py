"""Python functions as tools that a model calls: their schemas from type hints and docstrings, and calls of them."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
LONGEST_RESULT = 20_000
"""Characters of a result that the model is shown."""


def tool_of(function: Callable[..., Any]) -> dict[str, Any]:
    """OpenAI's description of a function.

    Its docstring's first paragraph says what it does, its `Args:` what the arguments are, in Google's style.
    """
    hints = typing.get_type_hints(function)
    about, of_arguments = _docstring(inspect.getdoc(function) or "")
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        properties[name] = _schema(hints.get(name, str))
        if name in of_arguments:
            properties[name]["description"] = of_arguments[name]
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": function.__name__, "description": about, "parameters": parameters}}


def call(functions: Mapping[str, Callable[..., Any]], name: str, arguments: dict[str, Any] | None) -> str:
    """What a model is told of its call: the result as text, or what was wrong with the call."""
    if name not in functions:
        return f"Error: there is no function {name}; there are {', '.join(functions)}"
    if arguments is None:
        return "Error: the arguments are no JSON object"
    try:
        bound = inspect.signature(functions[name]).bind(**arguments)
        _check(functions[name], bound.arguments)
    except TypeError as error:
        return f"Error: {name}: {error}"
    try:
        result = functions[name](*bound.args, **bound.kwargs)
    except (ValueError, ArithmeticError) as error:
        return f"Error: {error}"
    text = result if isinstance(result, str) else json.dumps(result, default=str)
    return text if len(text) <= LONGEST_RESULT else text[:LONGEST_RESULT] + " ... (cut off)"


def public_methods(instance: Any, without: tuple[str, ...] = ()) -> dict[str, Callable[..., Any]]:
    """Methods of an object whose names have no leading underscore, in the order of their definition."""
    names = [name for kind in reversed(type(instance).__mro__[:-1]) for name in vars(kind)]
    chosen = [name for name in dict.fromkeys(names) if not name.startswith("_") and name not in without]
    return {name: getattr(instance, name) for name in chosen if inspect.ismethod(getattr(instance, name))}


def _check(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for a value of another type than its hint says."""
    hints = typing.get_type_hints(function)
    for name, value in arguments.items():
        wanted = _schema(hints.get(name, object))
        kind = wanted.get("type")
        if kind and not _is(value, kind):
            raise TypeError(f"{name} is {json.dumps(value, default=str)[:50]}; it must be of type {kind}")
        if "enum" in wanted and value not in wanted["enum"]:
            raise TypeError(f"{name} is {json.dumps(value)[:50]}; it must be one of {', '.join(wanted['enum'])}")


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str), "integer": number and isinstance(value, int), "number": number,
        "boolean": isinstance(value, bool), "array": isinstance(value, list), "object": isinstance(value, dict),
    }[kind]  # fmt: skip


def _schema(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"type": "string", "enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        kinds = [part for part in inner if part is not type(None)]
        return _schema(kinds[0]) if len(kinds) == 1 and len(kinds) == len(inner) else {}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0])} if inner else {"type": "array"}
    name = TYPES.get(origin or hint)
    return {"type": name} if name else {}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    about, _, rest = text.partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.partition("\n\n")[0].splitlines():
        head, colon, tail = line.strip().partition(":")
        if colon and head.split(" ")[0].isidentifier() and len(line) - len(line.lstrip()) <= 4:
            name = head.split(" ")[0]
            found[name] = tail.strip()
        elif name:
            found[name] += " " + line.strip()
    return " ".join(about.strip().split("\n\n")[0].split()), found
