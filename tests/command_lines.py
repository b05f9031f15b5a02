"""Reading command lines with nano3's own parser, types and all, without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.main import get_command

from nano3.cli.app import app


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Verb and parameters of `nano3 WORDS...`; raises what the command line would end with."""
    command: Any = get_command(app)
    verb, context = "", command.make_context("nano3", list(words))
    while hasattr(command, "resolve_command") and (rest := [*context._protected_args, *context.args]):
        verb, command, rest = command.resolve_command(context, rest)
        context = command.make_context(verb, rest, parent=context)
    return verb, context.params
