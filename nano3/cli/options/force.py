"""What may stand where a verb is to write a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nano3.config.errors import UserError
from nano3.files import check_free

Force = Annotated[bool, typer.Option("--force", metavar="", help="Replace a model that is there.")]


def check_new_model(out: Path, force: bool, option: str = "--out", source: Path | None = None) -> None:
    """Refuse a place where something is: a model without --force, and anything else. That of the model itself, at
    `source`, is left to what writes, which refuses it with or without.

    Args:
        out: a folder, or a file.
        force: --force is given; what writes looks then at what it would replace.
        option: what the error calls it beside its path.
        source: folder of the model that is read.

    Raises:
        UserError: what is there.
    """
    if force or (source is not None and out.resolve() in (source.resolve(), (source / "model").resolve())):
        return
    if out.is_file() or (out / "config.json").is_file():
        name = f"{option} {out}".lstrip()
        raise UserError(f"{name}: there is a model already: give another name, or --force to replace it")
    check_free(out, option)
