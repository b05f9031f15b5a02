"""What a grammar may ask for before it is compiled: some short ones would take minutes and gigabytes, and some would
leave an output without a next token halfway.

Measured with llguidance 1.x: all else is worked out token by token within limits of its own, but `multipleOf` and
optional properties are spelled out at once.
"""

from __future__ import annotations

import functools
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
MAX_PATTERNS = 64
"""patternProperties of one object."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all multipleOf: the automaton has a state for each remainder."""
_MOST_DIGITS = 20
_JSON_IN_LARK = re.compile(r"%(?:json|llguidance|regex)\s*(?=[\[{])")


def check_costs(grammar: Grammar) -> None:
    """Refuse what would take too long to compile, and patternProperties that name a listed property, which lead
    into dead ends.

    Raises:
        UserError: too long, too many keys or patterns in an object, too large a multipleOf, or such a pattern.
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

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MAX_KEYS:
            raise UserError(f"a JSON object in the grammar has {len(pairs)} keys; at most {MAX_KEYS} are taken")
        found.extend(value for key, value in pairs if key == "multipleOf" and isinstance(value, Decimal))
        schema = dict(pairs)
        _check_patterns(schema.get("properties"), schema.get("patternProperties"))
        return schema

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


def _check_patterns(properties: Any, patterns: Any) -> None:
    """llguidance would let an output begin such a property by either schema, and find no end."""
    if not isinstance(properties, dict) or not isinstance(patterns, dict) or not properties:
        return
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f"patternProperties has {len(patterns)} patterns; at most {MAX_PATTERNS} are taken")
    texts = [(name, list(json.dumps(name, ensure_ascii=False).encode("utf-8", "replace"))) for name in properties]
    for pattern in patterns:
        matcher = _pattern_matcher(pattern)
        named = next((name for name, text in texts if matcher.validate_tokens(text) == len(text)), None)
        if named is not None:
            raise UserError(f"patternProperties cannot be enforced: {pattern[:100]!r} also names the property "
                            f"{named[:100]!r}; leave it out of one of the two")  # fmt: skip


def _pattern_matcher(pattern: str) -> Any:
    """Reads JSON strings in which a schema's pattern is found. By llguidance, which takes no longer for a hostile
    pattern; a wrong pattern, which finds nothing, is for the compiler to name."""
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "string", "pattern": pattern})
    return llguidance.LLMatcher(bytes_tokenizer(), grammar, log_level=0)


@functools.cache
def bytes_tokenizer() -> Any:
    """A vocabulary of bytes, for texts that no model writes."""
    import llguidance

    return llguidance.LLTokenizer("byte")


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
