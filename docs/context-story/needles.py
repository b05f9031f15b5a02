"""Writes retrieval texts in RULER's wording as JSON lines: statements of numbers in noise, then questions with answers.

    python docs/context-story/needles.py TOKENS SHORTEST LONGEST SEED > needles.jsonl

Texts have about SHORTEST to LONGEST tokens, spread evenly over the logarithm, TOKENS in all. Their numbers have 1 to 7
digits: a tiny model learns to look back from the short ones first, and hardly ever from seven digits alone.
"""

import json
import math
import random
import sys

from nano3.eval.ruler.templates import NEEDLE, NIAH_ONE, NIAH_ONE_PREFIX, NOISE
from nano3.eval.ruler.words import word_list

LINE, FACT = 25, 60
"""Tokens of a line of noise, and of a statement with its question."""


def text(rng: random.Random, tokens: int) -> str:
    """A text of about `tokens` tokens."""
    words = word_list()
    n_facts = max(1, min(rng.choice((1, 1, 1, 2, 4)), tokens // FACT))
    digits = rng.choice((1, 2, 3, 3, 5, 7, 7))
    facts = {}
    while len(facts) < n_facts:
        key = f"{rng.choice(words.adjectives)}-{rng.choice(words.nouns)}"
        facts[key] = str(rng.randrange(10 ** (digits - 1), 10**digits))
    lines = [" ".join(NOISE)] * max(0, round((tokens - FACT * n_facts) / LINE))
    for key, value in facts.items():
        lines.insert(rng.randrange(len(lines) + 1), NEEDLE.format(kind="number", key=key, value=value))
    haystack, asked = "\n".join(lines), rng.sample(sorted(facts), n_facts)
    answers = [f"{NIAH_ONE_PREFIX.format(kind='number', query=key)} {facts[key]}." for key in asked]
    if rng.random() < 0.5:
        return haystack + "\n" + "\n".join(answer.strip() for answer in answers)
    return NIAH_ONE.format(kind="number", context=haystack, query=asked[0]) + "".join(answers)


def main() -> None:
    """See above."""
    total, shortest, longest, seed = map(int, sys.argv[1:])
    rng = random.Random(seed)
    while total > 0:
        tokens = int(math.exp(rng.uniform(math.log(shortest), math.log(longest))))
        print(json.dumps({"text": text(rng, tokens)}))
        total -= tokens


main()
