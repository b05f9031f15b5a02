"""Variable tracking (scripts/data/synthetic/variable_tracking.py of the reference)."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from itertools import pairwise

from nano3.eval.ruler import templates
from nano3.eval.ruler.sample import Draft, Plan, Request

N_HOPS = 4
NAME_LETTERS = 5
EXAMPLE_LETTERS = 3
EXAMPLE_TOKENS = 500
"""Length of the solved example before the question, its answer's allowance included."""
EXAMPLE_ANSWER = 30
EXAMPLE_STEP = 5
"""The example has a multiple of this many lines of noise, unless it must be shorter."""
EXAMPLE_SHARE = 4
"""The example takes at most one part in this many of a sample (the reference's lengths start at 4096)."""
NOISE_LINE = " ".join(templates.NOISE) + "\n"


def plan(request: Request) -> Plan:
    """The prompt of `vt`, in lines of noise (the rest in words of a line)."""
    rng = request.rng("variables")
    names, value = _names(rng, NAME_LETTERS), _value(rng)
    example = _example(request)

    def build(n: int, words: int = 0) -> Draft:
        context = _context(_chain(names, value), n, request.rng("places"), words)
        text, prefix = _wording(context, value)
        return Draft(example + "\n\n" + text, prefix, names)

    line = len(NOISE_LINE.split())
    return Plan(build, least=1, refine=lambda n: Plan(lambda words: build(n, words), most=line - 1))


def _example(request: Request) -> str:
    """The solved example: the same lines in every sample of a seed, other variable names in each."""
    fixed = random.Random(f"vt example|{request.seed}")
    value = _value(fixed)
    places = fixed.random()
    names = _names(request.rng("example"), EXAMPLE_LETTERS)
    room = min(EXAMPLE_TOKENS, request.length // EXAMPLE_SHARE)

    def write(n: int) -> str:
        context = _context(_chain(names, value), n, random.Random(places))
        text, prefix = _wording(context, value)
        return f"{text}{prefix} {' '.join(names)}\n\n"

    lines = EXAMPLE_STEP
    while request.count(write(lines + EXAMPLE_STEP)) + EXAMPLE_ANSWER <= room:
        lines += EXAMPLE_STEP
    while lines > 1 and request.count(write(lines)) + EXAMPLE_ANSWER > room:
        lines -= 1
    return write(lines)


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
    """The assignments, in order, between `n` lines of noise and `words` words of one more."""
    lines = [NOISE_LINE] * n
    if words:
        lines.append(" ".join(NOISE_LINE.split()[:words]) + "\n")
    if n <= len(chain):
        # Too few lines to hide them between: between sentences, as the reference does.
        lines = [part + "." if part.strip() else part for line in lines for part in line.split(".")]
    places = sorted(rng.sample(range(len(lines)), len(chain)))
    for offset, place in enumerate(places):
        lines.insert(place + offset, chain[offset])
    return " ".join(lines).replace(". \n", ".\n")


def _wording(context: str, value: str) -> tuple[str, str]:
    """Question and answer prefix."""
    return (
        templates.VT.format(context=context, query=value),
        templates.VT_PREFIX.format(query=value, n_variables=N_HOPS + 1),
    )
