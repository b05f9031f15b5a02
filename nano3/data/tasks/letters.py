"""Letters of words: count one, spell backward.

A tokenizer merges letters, so the reasoning spells the word out before it works with it, and so do some of the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.tasks.lexicon import word
from nano3.data.tasks.task import Draft, Generator, answer, final_text, same_text, user

COUNTS = (
    "How many times does the letter {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "How often is there the letter {letter} in {word}?",
)
SPELLS = ("Spell this word backward: {word}", "Spell {word} backward.", "Reverse the letters of {word}.")
APART = 0.5
"""Share of the prompts in which the letters of the word stand apart, `c a t`, so that each is a token of its own."""
ABSENT = 0.15
"""Share of the counts whose letter is not in the word."""


def _count(rng: random.Random, level: int) -> Draft:
    text = word(rng, level)
    letter = rng.choice("abcdefghiklmnoprstuvwz") if rng.random() < ABSENT else rng.choice(text)
    seen, lines = 0, []
    for each in text:
        seen += each == letter
        # The letter looked for stands beside each: a small model compares neighbours sooner than what is far apart.
        lines.append(f"{each} {letter} {seen}")
    prompt = rng.choice(COUNTS).format(letter=letter, word=_written(rng, text))
    return Draft(f"word {text}", [user(prompt)], str(seen), [answer("\n".join(lines), str(seen))])


def _spell(rng: random.Random, level: int) -> Draft:
    text = word(rng, level)
    prompt = rng.choice(SPELLS).format(word=_written(rng, text))
    # Answered letter by letter, as one spells.
    back = " ".join(reversed(text))
    return Draft(f"word {text}", [user(prompt)], text[::-1], [answer(" ".join(text), back)])


def _written(rng: random.Random, text: str) -> str:
    return " ".join(text) if rng.random() < APART else text


def _check_spelled(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """1 for the letters in their order and nothing else, together or apart."""
    text = final_text(replies)
    return float(text is not None and "".join(text.split()) == truth)


COUNT = Generator("count", "count a letter in a word", "letters of the word", (3, 4, 5, 6), 24, _count, same_text)
SPELL = Generator("spell", "spell a word backward", "letters of the word", (3, 4, 5), 24, _spell, _check_spelled)
