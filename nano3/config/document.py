"""The table of all settings in docs/configuration.md: `python -m nano3.config.document` writes it anew."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import tomli_w

from nano3.config.extend_context import ExtendContextConfig
from nano3.config.presets import load_extend_context, load_pretrain
from nano3.config.typed import field_types

SHOWN = "tiny"
"""The preset that a run takes which names none; keys that pretraining lacks are of extend-context's."""
PAGE = Path("docs/configuration.md")
START, END = "<!-- settings: python -m nano3.config.document -->\n", "<!-- end of settings -->\n"


def settings_table(schema: type = ExtendContextConfig) -> str:
    """Markdown: for every section its summary, and for every key its default, the value of the presets SHOWN where it
    is another, and the text beside its field."""
    parts, presets = [], [load_pretrain(SHOWN), load_extend_context(SHOWN)]
    for name, kind in field_types(schema).items():
        assert is_dataclass(kind), f"{name} is no section"
        summary = (inspect.getdoc(kind) or "").partition("\n")[0]
        parts += [f"### {name}\n", summary + "\n", "| key | default | tiny | |\n|---|---|---|---|"]
        parts += _rows(name, typing.cast(type, kind), presets)
        parts.append("")
    return "\n".join(parts)


def with_table(page: str) -> str:
    """The page with the table between its two marks replaced."""
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {START.strip()} ... {END.strip()}")
    return f"{before}{START}\n{settings_table()}\n{END}{after}"


@functools.cache
def field_docs(schema: type) -> Mapping[str, str]:
    """Field name to the string literal that follows it in the source of a dataclass or of those it extends."""
    docs = dict(field_docs(schema.__base__)) if schema.__base__ not in (None, object) else {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(tree, ast.ClassDef)
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = following.value if isinstance(following, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[statement.target.id] = inspect.cleandoc(value.value)
    return docs


def settings(schema: type = ExtendContextConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default and text of every setting of a stage, in the order of the source."""
    types = field_types(schema)
    for field in fields(schema):
        if field.name not in types:
            continue
        key, inner = f"{prefix}{field.name}", types[field.name]
        if isinstance(inner, type) and is_dataclass(inner):
            yield from settings(inner, f"{key}.")
        else:
            yield key, toml_value(_default(field)), " ".join(field_docs(schema)[field.name].split())


def _documented(schema: type) -> list[tuple[Field, str]]:
    docs = field_docs(schema)
    return [(field, docs[field.name]) for field in fields(schema) if field.name in field_types(schema)]


def _rows(section: str, schema: type, presets: list[Any]) -> list[str]:
    """A row for every key of a section and of the sections in it."""
    types = field_types(schema)
    rows = []
    for field, docs in _documented(schema):
        inner = types[field.name]
        name = f"{section}.{field.name}"
        if isinstance(inner, type) and is_dataclass(inner):
            rows += _rows(name, inner, presets)
        else:
            rows.append(_row(name, field, docs, _shown(name, presets)))
    return rows


def _row(name: str, field: Field, docs: str, shown: Any) -> str:
    text = " ".join(docs.split()).replace("|", "\\|").replace("*", "\\*")
    default = _default(field)
    return f"| `{name}` | `{toml_value(default)}` | {'' if shown == default else f'`{toml_value(shown)}`'} | {text} |"


def _shown(name: str, presets: list[Any]) -> Any:
    """The value of the first preset that has the setting."""
    for preset in presets:
        with suppress(AttributeError):
            return functools.reduce(getattr, name.split("."), preset)
    raise AssertionError(name)


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def toml_value(value: Any) -> str:
    """A value as a TOML file and `--set` write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
