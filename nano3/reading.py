"""Reading the user's text, JSON and TOML files as editors of every system write them; errors name the file.

A byte-order mark, which editors on Windows put first, is no part of the text (RFC 8259 section 8.1).
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError


def decode(data: bytes) -> str:
    """Text of UTF-8 bytes, without a byte-order mark. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig")


def read_text(path: Path, where: str = "") -> str:
    """A file's text.

    Args:
        path: the file.
        where: what errors call it; its path by default.

    Raises:
        UserError: not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return decode(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{where or path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def is_lfs_pointer(begin: bytes) -> bool:
    """Whether a file that begins so is what Git leaves in place of a large file that was not fetched."""
    return begin.startswith(b"version https://git-lfs.github.com/spec/")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; a whole number too long for Python's integers becomes a float, as `1e400` does.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested too deeply.
    """
    text = decode(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        try:
            return json.loads(text)
        except (json.JSONDecodeError, UnicodeError):
            raise
        except ValueError:  # more digits than sys.get_int_max_str_digits
            return json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: not JSON, not UTF-8, or nested too deeply.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ValueError: it is no TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        UserError: not TOML, not UTF-8, or nested too deeply.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return parse_toml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
