"""What a grammar may ask for before it is compiled: some short ones would take minutes and gigabytes.

Measured with llguidance 1.x: all else is worked out token by token within limits of its own, but `multipleOf` and
optional properties are spelled out at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from nano3.config.errors import UserError
from nano3.engine.request import Grammar

MAX_TEXT = 1 << 18
"""Characters of a schema, pattern, list or grammar."""
MAX_KEYS = 1000
"""Keys of one JSON object: optional properties cost the square of their number."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all multipleOf: the automaton has a state for each remainder."""
_MOST_DIGITS = 20
_JSON_IN_LARK = re.compile(r"%(?:json|llguidance|regex)\s*(?=[\[{])")


def check_costs(grammar: Grammar) -> None:
    """Refuse what would take too long to compile.

    Raises:
        UserError: too long, too many keys in an object, or too large a multipleOf.
    """
    length = len(grammar.value)
    if length > MAX_TEXT:
        raise UserError(f"the grammar ({grammar.kind}) has {length} characters; at most {MAX_TEXT} are taken")
    remainders = 1
    for multiple in _multiples(grammar):
        remainders = math.lcm(remainders, _remainders(multiple))
        if remainders > MAX_MULTIPLE:
            raise UserError(
                f"multipleOf {multiple:.9g} cannot be enforced: only powers of ten, and numbers whose least common "
                f"multiple is at most {MAX_MULTIPLE}"
            )


def _multiples(grammar: Grammar) -> list[Decimal]:
    """All multipleOf of a grammar, wherever they stand."""
    found: list[Decimal] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > MAX_KEYS:
            raise UserError(f"a JSON object in the grammar has {len(pairs)} keys; at most {MAX_KEYS} are taken")
        found.extend(value for key, value in pairs if key == "multipleOf" and isinstance(value, Decimal))

    decoder = json.JSONDecoder(object_pairs_hook=look, parse_float=Decimal, parse_int=Decimal, strict=False)
    for start in _json_starts(grammar):
        try:
            decoder.raw_decode(grammar.value, start)
        except UserError:
            raise
        except (ValueError, ArithmeticError):
            continue  # no JSON; the compiler says so
        except RecursionError as error:
            raise UserError("the JSON in the grammar is nested too deeply") from error
    return found


def _json_starts(grammar: Grammar) -> Iterator[int]:
    if grammar.kind == "json_schema":
        yield len(grammar.value) - len(grammar.value.lstrip())
    elif grammar.kind == "lark":
        yield from (match.end() for match in _JSON_IN_LARK.finditer(grammar.value))


def _remainders(multiple: Decimal) -> int:
    """States that a number takes; powers of ten only count zeros."""
    _, digits, exponent = multiple.normalize().as_tuple()
    assert isinstance(exponent, int)
    if digits in ((0,), (1,)):
        return 1
    if len(digits) + max(exponent, 0) > _MOST_DIGITS:
        return MAX_MULTIPLE + 1
    return int("".join(map(str, digits))) * 10 ** max(exponent, 0)
