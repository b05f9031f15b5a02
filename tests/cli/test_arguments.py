"""How every verb's help names the arguments that have no option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.core import TyperArgument

from nano3.cli.app import VERBS, VerbGroup


def arguments(command: Any, path: str) -> Iterator[tuple[str, TyperArgument]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from arguments(inner, f"{path} {name}")
    yield from ((path, each) for each in command.params if isinstance(each, TyperArgument))


@pytest.mark.parametrize("verb", VERBS)
def test_arguments_are_named_in_capitals(verb):
    group = VerbGroup(name="nano3")
    found = dict(arguments(group.get_command(None, verb), verb))
    shown = {path: argument.metavar for path, argument in found.items()}
    assert {path: name for path, name in shown.items() if not name or name != name.upper()} == {}
