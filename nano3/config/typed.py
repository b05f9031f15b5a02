"""TOML tables to dataclasses, strictly: an unknown key or a wrong type names the key, the place and the nearest key."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal

from nano3.config.errors import UserError
from nano3.reading import parse_toml

MAIN = "train."
"""Section of what a run is: the first that a key without a section may mean."""
OTHERS = 3
"""Other keys of the same name that a suggestion mentions."""
CLOSE = 0.75
"""Likeness from which a name is taken for a misspelt one."""
OTHER_NAMES = {"learning_rate": "schedule.peak_lr", "max_steps": "train.steps", "sequence_length": "data.seq_len"}
"""What other trainers call a setting."""


@dataclass(frozen=True)
class ShellValue:
    """A value typed after `--set key=`: TOML, or a bare string where it is no TOML."""

    text: str

    def parsed(self) -> Any:
        """The TOML value, or the text itself."""
        try:
            table = parse_toml(f"value = {self.text}")
        except ValueError:
            return self.text
        return table["value"] if set(table) == {"value"} else self.text

    def as_type(self, kind: Any) -> Any:
        """The value for a field of type `kind`: text stays text, and one string makes a list of one."""
        value = self.parsed()
        if kind is str and not isinstance(value, str):
            return self.text
        if typing.get_origin(kind) is list and not isinstance(value, list):
            return [ShellValue(self.text).as_type(typing.get_args(kind)[0])]
        return value


@cache
def field_types(schema: type) -> dict[str, Any]:
    """Name to type of the fields of a dataclass that a preset may set: all whose metadata does not say otherwise."""
    hints = typing.get_type_hints(schema)
    return {f.name: hints[f.name] for f in fields(schema) if f.metadata.get("preset", True)}


def keys(schema: type, prefix: str = "") -> list[str]:
    """All keys of a dataclass tree, dotted: `train.tokens`."""
    found = []
    for name, kind in field_types(schema).items():
        found += keys(typing.cast(type, kind), f"{prefix}{name}.") if is_dataclass(kind) else [prefix + name]
    return found


def check_table(table: dict[str, Any], schema: type, where: str, prefix: str = "", root: type | None = None) -> dict:
    """The table with every value converted to its field's type; keys that it leaves out stay out.

    Args:
        table: what a TOML file says, or a part of it.
        schema: the dataclass that the table describes.
        where: the file or option, for errors.
        prefix: dotted key of the table itself, ending in a dot.
        root: the outermost dataclass, whose keys are suggested for an unknown one.

    Raises:
        UserError: a key is unknown or a value has the wrong type.
    """
    root = root or schema
    types = field_types(schema)
    checked = {}
    for name, value in table.items():
        key = prefix + name
        if name not in types:
            raise UserError(f"{where}: unknown key '{key}'; {_nearest_key(key, prefix, types, root)}")
        if not is_dataclass(types[name]):
            checked[name] = convert(value, types[name], key, where)
        elif isinstance(value, dict):
            checked[name] = check_table(value, typing.cast(type, types[name]), where, f"{key}.", root)
        else:
            raise UserError(
                f"{where}: '{key}' is a section, not a value; its keys are {_listed(field_types(types[name]))}"
            )
    return checked


def convert(value: Any, kind: Any, key: str, where: str) -> Any:
    """`value` as a field of type `kind`: an int serves as a float, and a float without fraction as an int.

    Raises:
        UserError: the value is of another type.
    """
    if isinstance(value, ShellValue):
        value = value.as_type(kind)
    if kind is Any:
        return value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _convert_choice(value, inner, key, where)
    if origin is list and isinstance(value, list):
        return [convert(item, inner[0], f"{key}[{i}]", where) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: convert(item, inner[1], f"{key}.{name}", where) for name, item in value.items()}
    if origin is None:
        converted = _SCALARS[kind](value)
        if converted is not None:
            return converted
    raise UserError(f"{where}: '{key}' must be {_named(kind)}, not {_shown(value)}")


def construct(schema: type, table: dict[str, Any]) -> Any:
    """The dataclass tree of a checked table; keys left out take their defaults."""
    types = field_types(schema)
    sections = {name: _section(types[name], table[name], name) for name in table if is_dataclass(types[name])}
    return schema(**(table | sections))


def _section(schema: type, table: dict[str, Any], name: str) -> Any:
    """As `construct`, of a section; errors of a section in it, which do not know where they are, name both."""
    types = field_types(schema)
    built = dict(table)
    for key in [key for key in table if is_dataclass(types[key])]:
        try:
            built[key] = _section(types[key], table[key], key)
        except ValueError as error:
            place = "" if str(error).startswith(f"{name}.") else f"{name}."
            raise ValueError(f"{place}{error}") from error
    return schema(**built)


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The valid name most like `name`, or None when none is like it (1: equal, 0: nothing in common)."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def _nearest_key(key: str, prefix: str, types: dict[str, Any], root: type) -> str:
    found = _suggestions(key, prefix, types, root)
    if not found:
        return f"valid keys: {_listed(types)}"
    others = f" (also {', '.join(found[1 : 1 + OTHERS])})" if found[1:] else ""
    return f"did you mean '{found[0]}'?{others}"


def _suggestions(key: str, prefix: str, types: dict[str, Any], root: type) -> list[str]:
    """Keys that an unknown one may mean, the likeliest first: those of the same last part, else the nearest in its
    section, else those of the nearest last part, else those with its words in theirs."""
    everywhere = sorted(keys(root), key=lambda full: (full.count("."), not full.startswith((prefix or MAIN, MAIN))))
    leaf, siblings = _leaf(OTHER_NAMES.get(key, key)), [prefix + name for name in types]
    near = nearest(key, siblings, CLOSE) or nearest(leaf, map(_leaf, everywhere), CLOSE)
    words = set(leaf.split("_"))
    ways = (
        [full for full in everywhere if _leaf(full) == leaf],
        [near] if near in siblings else [full for full in everywhere if _leaf(full) == near],
        [full for full in everywhere if words <= set(_leaf(full).split("_"))],
        [near for near in [nearest(key, siblings if prefix else everywhere)] if near],
    )
    return next((found for found in ways if found), [])


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _convert_choice(value: Any, choices: tuple, key: str, where: str) -> Any:
    if value in choices and type(value) in {type(c) for c in choices}:
        return value
    close = nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else None
    hint = f"; did you mean {close!r}?" if close else ""
    raise UserError(f"{where}: '{key}' must be one of {', '.join(map(_shown, choices))}, not {_shown(value)}{hint}")


def _as_int(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _as_float(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _as_int,
    float: _as_float,
    str: lambda value: value if isinstance(value, str) else None,
    bool: lambda value: value if isinstance(value, bool) else None,
}
_NAMES = {Any: "any value", int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}


def _named(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"a list, each item {_named(inner[0])}"
    if origin is dict:
        return f"a table, each value {_named(inner[1])}"
    return _NAMES[kind]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(types: dict[str, Any]) -> str:
    return ", ".join(types)
