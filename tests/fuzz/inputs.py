"""Wrong inputs made from right ones, and what a campaign counts.

`pytest tests/fuzz` tries few inputs of each target, always the same. A campaign tries others, and more, each time:

    NANO3_FUZZ_EXAMPLES=2000 pytest tests/fuzz

It ends with the number of inputs of each target. The smallest input of what it finds becomes a test in test_found.py.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nano3.cli.app import USER_ERRORS

EXAMPLES = int(os.environ.get("NANO3_FUZZ_EXAMPLES", "0"))
FEW = 25
tried: Counter[str] = Counter()
"""Inputs by target."""

ODD = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**400, -(10**30), 0.5, 1e-300, 1e308, float("nan"), float("inf"),
    -float("inf"), "", "x", "\0", "\ud800", "\u202e", "a" * 5000, "1", "-1", "NaN", "null", "../..", "{}", "[" * 5000,
    [], [[]], [None], [0], ["x"], [{}], {}, {"": None}, {"a": {"a": [1, {"b": None}]}}, {"type": "object"},
]  # fmt: skip
"""What stands where another value belongs."""
_ACTIONS = ("replace", "replace", "replace", "remove", "rename", "wrap", "repeat", "nest")


def fuzz(few: int = FEW) -> Callable[[Any], Any]:
    """Settings of a target: `few` inputs, or those of a campaign."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES or few, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=checks, print_blob=False,
    )  # fmt: skip


@contextmanager
def works_or_tells(target: str, names: str = "") -> Iterator[None]:
    """Counts an input, and takes the errors that the command line tells in one line and ends with exit code 2.

    Args:
        target: what is counted.
        names: what such an error must name.
    """
    tried[target] += 1
    try:
        yield
    except USER_ERRORS as error:
        text = str(error)
        if not text.strip() or names not in text:
            raise AssertionError(f"{type(error).__name__} {text!r} does not name {names!r}") from error


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _changed(value: Any, path: tuple[Any, ...], action: str, odd: Any) -> Any:
    if not path:
        return odd if action == "replace" else value
    *outer, last = path
    parent = value
    for key in outer:
        parent = parent[key]
    if action == "remove":
        del parent[last]
    elif action == "rename" and isinstance(parent, dict):
        parent[f"{last}_"] = parent.pop(last)
    elif action == "wrap":
        parent[last] = [parent[last]] if odd else {"value": parent[last]}
    elif action == "repeat" and isinstance(parent, list):
        parent.extend([copy.deepcopy(parent[last])] * 3)
    elif action == "nest":
        parent[last] = _nested(parent[last], 200)
    else:
        parent[last] = odd
    return value


@st.composite
def mutated(draw: Any, value: Any, most: int = 3) -> Any:
    """The JSON value with up to `most` changes: another type or number, a key less, renamed, one level deeper."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(_places(value)))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        value = _changed(value, path, draw(st.sampled_from(_ACTIONS)), odd)
    return value


def json_text(value: Any) -> str:
    """Its JSON, with numbers of any length and lone surrogates as escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return json.dumps(value)


def _twice(text: str) -> str:
    return text[:1] + text[1:-1] + ", " + text[1:] if text.startswith("{") and len(text) > 2 else text


ENCODINGS: list[Callable[[str], bytes]] = [
    *[lambda text: text.encode("utf-8", "surrogatepass")] * 8,
    lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"),
    lambda text: text.encode("utf-16", "surrogatepass"),
    lambda text: text.encode("utf-8", "surrogatepass")[: len(text) // 2],
    lambda text: text.encode("utf-8", "surrogatepass").replace(b" ", b"\0", 1),
    lambda text: text.encode("utf-8", "surrogatepass") + b"\xff",
    lambda text: _twice(text).encode("utf-8", "surrogatepass"),
    lambda text: b"",
    lambda text: b"[" * 100_000,
    lambda text: b'{"a":' * 5000 + b"1" * 5000,
]


@st.composite
def files(draw: Any, value: Any, most: int = 3) -> bytes:
    """Bytes of a JSON file: `mutated`, in a right or wrong encoding, cut, or no JSON at all."""
    changed = draw(mutated(value, most))
    return draw(st.sampled_from(ENCODINGS))(json_text(changed))


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """A binary file with some bytes replaced, left out or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        place = draw(st.integers(0, len(changed) - 1))
        kind = draw(st.sampled_from(["set", "set", "cut", "drop", "add"]))
        if kind == "set":
            changed[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place:]
        elif kind == "drop":
            del changed[place : place + 8]
        else:
            changed[place:place] = draw(st.binary(max_size=8))
    return bytes(changed)
