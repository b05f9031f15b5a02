"""`nano3 config`: the settings that --set and preset files know, with what they mean."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any

import typer

from nano3.cli.options.common import HELP, Json, complete_context_setting
from nano3.config.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
PRESET = "tiny"


def complete_key(incomplete: str) -> list[str]:
    """Keys that begin so."""
    return [text.removesuffix("=") for text in complete_context_setting(incomplete)]


@app.command()
def config(
    key: Annotated[
        str | None,
        typer.Argument(
            help="A setting, a section, or a part of a name. Default: all.",
            metavar="KEY",
            show_default=False,
            autocompletion=complete_key,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="Pretraining preset, or a TOML file, whose values are shown; sft/tiny, rlvr/tiny, "
            "rlhf/tiny and genrm/tiny for the settings of these stages.",
            metavar="NAME|FILE",
        ),
    ] = PRESET,
    as_json: Json = False,
) -> None:
    """List the settings of training: the keys of --set, their values and meanings.

    [dim]One section, one setting, all that have "tokens" in their name:[/]
      nano3 config schedule
      nano3 config train.tokens
      nano3 config tokens
    """  # fmt: skip
    rows = _rows(preset)
    found = _matching(rows, key)
    if not found:
        from nano3.config.typed import nearest

        close = nearest(key or "", [row["key"] for row in rows])
        hint = f"; did you mean '{close}'?" if close else ""
        raise UserError(f"no setting has {key!r} in its name{hint} (nano3 config lists all)")
    if as_json:
        from nano3.cli.output import print_json

        return print_json({"preset": preset, "settings": found})
    return _show(found, preset)


def _rows(preset: str) -> list[dict[str, Any]]:
    import tomllib

    from nano3.config.document import settings, toml_value
    from nano3.config.extend_context import ExtendContextConfig
    from nano3.config.genrm import GenrmConfig
    from nano3.config.presets import load_genrm, load_pretrain, load_rlhf, load_rlvr, load_sft, to_toml
    from nano3.config.rlhf import RlhfConfig
    from nano3.config.rlvr import RlvrConfig
    from nano3.config.sft import SftConfig

    stages = {
        "sft": (load_sft, SftConfig),
        "rlvr": (load_rlvr, RlvrConfig),
        "rlhf": (load_rlhf, RlhfConfig),
        "genrm": (load_genrm, GenrmConfig),
    }
    load, schema = stages.get(preset.partition("/")[0], (load_pretrain, ExtendContextConfig))
    values = tomllib.loads(to_toml(load(preset)))
    return [
        {"key": key, "value": toml_value(value) if value is not None else None, "default": default, "text": text}
        for key, default, text in settings(schema)
        for value in [_at(values, key)]
    ]


def _at(values: dict[str, Any], key: str) -> Any:
    """The value of `section.key`; None where the preset leaves it unset or is of a stage without it."""
    return reduce(lambda inner, part: inner.get(part) if isinstance(inner, dict) else None, key.split("."), values)


def _matching(rows: list[dict[str, Any]], key: str | None) -> list[dict[str, Any]]:
    """The setting of this name, else those of the section, else those with it in their name."""
    if key is None:
        return rows
    key = key.removesuffix("=").removesuffix(".")
    tests = (lambda name: name == key, lambda name: name.startswith(f"{key}."), lambda name: key in name)
    return next((found for test in tests if (found := [row for row in rows if test(row["key"])])), [])


def _show(found: list[dict[str, Any]], preset: str) -> None:
    from rich.text import Text

    from nano3.cli.output import plain_table, print_table, results

    table = plain_table("Settings, for --set KEY=VALUE and preset files", "key", preset, "")
    for row in found:
        table.add_row(row["key"], Text(row["default"] if row["value"] is None else row["value"]), Text(row["text"]))
    print_table(results(), table)
