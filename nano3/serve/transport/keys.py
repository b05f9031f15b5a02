"""API keys from options, a file and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nano3.config.errors import UserError
from nano3.reading import read_text

VARIABLE = "NANO3_API_KEYS"


def collect_keys(given: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """All keys, each once.

    Args:
        given: as options.
        file: one key a line; empty lines and lines that begin with # are left out.
        environment: its NANO3_API_KEYS holds keys with commas or white space between them.

    Raises:
        UserError: an empty key, or a file without any: such a server would be open against the operator's will.
        OSError: the file cannot be read.
    """
    keys = [key.strip() for key in given]
    if not all(keys):
        raise UserError("--api-key is empty; give a key, or leave the option out")
    if file is not None:
        lines = [line.strip() for line in read_text(file).splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UserError(f"{file}: no key in it; write one a line")
        keys += found
    keys += environment.get(VARIABLE, "").replace(",", " ").split()
    return tuple(dict.fromkeys(keys))
