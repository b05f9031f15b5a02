"""Variable tracking (scripts/data/synthetic/variable_tracking.py of the reference)."""

from __future__ import annotations

import random
import re
import string
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from nano3.eval.ruler import templates
from nano3.eval.ruler.sample import Draft, Plan, Request

N_HOPS = 4
NAME_LETTERS = 5
EXAMPLE_LETTERS = 3
EXAMPLE_TOKENS = 500
"""Most tokens of the solved example before the question, without its answer."""
EXAMPLE_VALUE = "12345"
"""Stands for the example's value where its lines are counted."""
EXAMPLE_SHARE = 4
"""The example takes at most one part in this many of a sample (the reference's lengths start at 4096)."""
NOISE_LINE = " ".join(templates.NOISE)


def plan(request: Request) -> Plan:
    """The prompt of `vt`, in lines of noise (the rest in words of a line)."""
    rng = request.rng("variables")
    names, value = _names(rng, NAME_LETTERS), _value(rng)
    example = _example(request)

    def build(n: int, words: int = 0) -> Draft:
        context = _context(_chain(names, value), n, request.rng("places"), words)
        text, prefix = _wording(context, value)
        return Draft(example + "\n" + text, prefix, names)

    line = len(NOISE_LINE.split())
    return Plan(build, least=1, refine=lambda n: Plan(lambda words: build(n, words), most=line - 1))


def _example(request: Request) -> str:
    """The solved example: the same lines in every sample of a seed, another value and other names in each."""
    fixed = random.Random(f"vt example|{request.seed}")
    places, shown = fixed.random(), _names(fixed, EXAMPLE_LETTERS)

    def write(n: int, names: Sequence[str], value: str) -> str:
        context = _context(_chain(names, value), n, random.Random(places))
        return "".join(_wording(context, value))

    room = min(EXAMPLE_TOKENS, request.length // EXAMPLE_SHARE)
    lines = bisect_right(range(1, room), room, key=lambda n: request.count(write(n, shown, EXAMPLE_VALUE)))
    rng = request.rng("example")
    names = _names(rng, EXAMPLE_LETTERS)
    return f"{write(max(1, lines), names, _value(rng))} {' '.join(names)}\n"


def _value(rng: random.Random) -> str:
    return str(rng.randrange(10000, 99999))


def _names(rng: random.Random, letters: int) -> list[str]:
    """Different names; VAR, the keyword, is none of them."""
    names: list[str] = []
    while len(names) < N_HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name != "VAR" and name not in names:
            names.append(name)
    return names


def _chain(names: Sequence[str], value: str) -> list[str]:
    """One assignment of a number, then one for each further variable."""
    hops = [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    return [f"VAR {names[0]} = {value}", *hops]


def _context(chain: Sequence[str], n: int, rng: random.Random, words: int = 0) -> str:
    """The assignments, in order, between `n` lines of noise and `words` words of one more; each on its own line."""
    lines = [NOISE_LINE] * n
    if words:
        lines.append(" ".join(NOISE_LINE.split()[:words]))
    if n < len(chain):
        # Too few lines to hide them between (the reference's samples never are): between sentences.
        lines = [sentence for line in lines for sentence in re.split(r"(?<=\.) ", line)]
    places = sorted(rng.sample(range(len(lines)), len(chain)))
    for offset, place in enumerate(places):
        lines.insert(place + offset, chain[offset])
    return "\n".join(lines)


def _wording(context: str, value: str) -> tuple[str, str]:
    """Question and answer prefix."""
    return (
        templates.VT.format(context=context, query=value),
        templates.VT_PREFIX.format(query=value, n_variables=N_HOPS + 1),
    )
