"""Regular expressions for text that still arrives: may this be the beginning of a tag?"""

from __future__ import annotations

import re

SPACES = " \t\r\n"
LONGEST_GAP = 256
GAP = rf"[{SPACES}]{{0,{LONGEST_GAP}}}"
NAME = r"[^<>\s][^<>\n]{0,255}"
"""Bounded, as GAP: a model stuck in a loop must not make each step search a longer text than the last."""


def begun(literal: str, then: str = "") -> str:
    """Pattern of `literal` and `then`, or of any beginning of it that the text ends in, the empty one included."""
    pattern = then
    for letter in reversed(literal):
        pattern = rf"(?:\Z|{re.escape(letter)}{pattern})"
    return pattern


def begun_name(then: str) -> str:
    """`NAME` and `then`, or any beginning of it that the text ends in; `then` comes from `begun`."""
    return rf"(?:\Z|{NAME}{then})"
