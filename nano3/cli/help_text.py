"""The help of verbs as a terminal of 80 columns shows it best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from typer.core import TyperArgument

_VALUES = {
    "<int>": "N", "<int range>": "N", "<float>": "X", "<float range>": "X", "<str>": "TEXT", "<path>": "PATH",
    "<bool>": None,
}  # fmt: skip
"""What stands for a value in the help, by what typer writes."""


def _value_shown(parameter: Any, shown: Callable[[Any], str | None], ctx: Any) -> str | None:
    """What stands behind a parameter's name for its value; nothing behind an argument, whose name says it."""
    value = None if isinstance(parameter, TyperArgument) else shown(ctx)
    return value if value is None else _VALUES.get(value, value)


def tidy_help(command: Any) -> None:
    """Let the help of a verb, and of its inner verbs, fit the terminal: its sentences flow, and what takes the width
    that the words need is left out: `[0<=x<=1]`, which errors still tell, and the types of arguments and flags."""
    command.help = _flowing(command.help or "")
    for parameter in command.params:
        parameter._get_number_range_help_str = lambda: None
        if shown := getattr(parameter, "display_type_rich", None):  # not in every version of typer
            parameter.display_type_rich = partial(_value_shown, parameter, shown)
    help_option = command.get_help_option

    def without_type(ctx: Any) -> Any:
        option = help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option

    command.get_help_option = without_type
    for inner in getattr(command, "commands", {}).values():
        tidy_help(inner)


def _flowing(text: str) -> str:
    """A help text without the line ends of its source, but for those of examples, whose lines are indented."""
    paragraphs = text.split("\n\n")
    # The empty tag keeps typer from removing an indentation that all lines but the first have.
    return "\n\n".join(
        part.replace("\n  ", "\n[dim][/]  ") if "\n  " in part else part.replace("\n", " ") for part in paragraphs
    )
