"""Fenced blocks of code in a text."""

from __future__ import annotations

import re


def fenced(code: str, language: str) -> str:
    """Code between fences that it does not contain."""
    longest = max([2, *map(len, re.findall(r"^[ \t]*(`+)", code, re.MULTILINE))])
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code}{'' if code.endswith(chr(10)) else chr(10)}{fence}"
