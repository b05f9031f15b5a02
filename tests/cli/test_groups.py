"""Options that stand in a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from nano3.cli.options.groups import grouped


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width", help="How wide.")] = 3
    name: str = "x"


@dataclass(frozen=True)
class Bigger(Size):
    width: Annotated[int, typer.Option("--width", help="How wide.")] = 30


@dataclass
class Open:
    depth: int


@pytest.fixture
def app():
    app = typer.Typer()

    @app.command()
    @grouped
    def one(size: Size, deep: bool = False) -> None:
        """Says what it got."""
        print(size, deep)

    @app.command()
    @grouped
    def two(size: Bigger) -> None:
        print(size.width)

    return app


def test_fields_are_options_of_the_verb(app):
    told = CliRunner().invoke(app, ["one", "--width", "5", "--deep"])
    assert told.output == "Size(width=5, name='x') True\n"
    assert CliRunner().invoke(app, ["one"]).output == "Size(width=3, name='x') False\n"
    assert CliRunner().invoke(app, ["two"]).output == "30\n"
    text = CliRunner().invoke(app, ["one", "--help"]).output
    assert text.index("How wide") < text.index("--name") < text.index("--deep")
    assert "Says what it got" in text


def test_an_option_needs_a_default():
    def verb(where: Open) -> None: ...

    with pytest.raises(AssertionError, match=r"Open\.depth has no default"):
        grouped(verb)
