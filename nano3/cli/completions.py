"""Shell completion scripts: `python -m nano3.cli.completions [FOLDER]` writes them anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from typer._completion_shared import get_completion_script

SHELLS = ("bash", "zsh", "fish")
FOLDER = Path("completions")


def scripts() -> dict[str, str]:
    """File name to text of the completion script of every shell."""
    return {f"nano3.{shell}": _script(shell) for shell in SHELLS}


def write(folder: Path) -> None:
    """Write all scripts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts().items():
        (folder / name).write_text(text, encoding="utf-8")


def _script(shell: str) -> str:
    return get_completion_script(prog_name="nano3", complete_var="_NANO3_COMPLETE", shell=shell) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nano3.cli.completions", description="Write completion scripts.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where to (%(default)s)")
    write(parser.parse_args().folder)
