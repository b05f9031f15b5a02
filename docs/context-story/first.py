"""Writes short retrieval texts as JSON lines, from which a tiny model can learn in two minutes to find RULER's needle.

    python docs/context-story/first.py TOKENS SEED > first.jsonl

Each text has one number and asks for it. Most are a single line, the others RULER's `niah_single_1` with little noise:
a model learns to copy digits sooner where there is hardly anything else to learn, and short numbers before long ones.
"""

import json
import random
import sys

from nano3.eval.ruler.templates import NEEDLE, NIAH_ONE, NIAH_ONE_PREFIX, NOISE
from nano3.eval.ruler.words import word_list

LINES = 0.6
"""Share of the texts that are a single line."""
CHARACTERS = 3.2
"""Of one token, about, with 1,024 tokens of these texts."""


def line(rng: random.Random) -> str:
    """A number, sometimes a sentence, and the number again, up to three times."""
    value = number(rng, (1, 2, 3, 5, 7, 7))
    between = rng.choice(("", "", "", " The sky is blue."))
    again = "\n".join([f"provided text is {value}."] * rng.choice((1, 1, 2, 3)))
    return f"number is: {value}.{between}\n{again}"


def needle(rng: random.Random) -> str:
    """A number in up to four lines of noise, and the question for it, with or without RULER's instructions."""
    words = word_list()
    key, value = f"{rng.choice(words.adjectives)}-{rng.choice(words.nouns)}", number(rng, (3, 7, 7, 7))
    lines = [" ".join(NOISE)] * rng.choice((0, 0, 0, 1, 1, 2, 4))
    lines.insert(rng.randint(0, len(lines)), NEEDLE.format(kind="number", key=key, value=value))
    haystack, answer = "\n".join(lines), f"{NIAH_ONE_PREFIX.format(kind='number', query=key)} {value}."
    if rng.random() < 0.7:
        return f"{haystack}\n{answer.strip()}"
    return NIAH_ONE.format(kind="number", context=haystack, query=key) + answer


def number(rng: random.Random, digits: tuple[int, ...]) -> str:
    """A number of one of these numbers of digits."""
    n = rng.choice(digits)
    return str(rng.randrange(10 ** (n - 1), 10**n))


def main() -> None:
    """See above."""
    left, seed = map(int, sys.argv[1:])
    rng = random.Random(seed)
    while left > 0:
        text = (line if rng.random() < LINES else needle)(rng)
        print(json.dumps({"text": text}))
        left -= len(text) / CHARACTERS


main()
