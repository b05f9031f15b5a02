"""Letters of words: count one, spell backward.

A tokenizer merges letters, so the reasoning spells the word out before it works with it.
"""

from __future__ import annotations

import random

from nano3.data.tasks.lexicon import word
from nano3.data.tasks.task import Draft, Generator, answer, same_text, user

COUNTS = (
    "How many times does the letter {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "How often is there the letter {letter} in {word}?",
)
SPELLS = ("Spell this word backward: {word}", "Write {word} backward.", "Reverse the letters of {word}.")
ABSENT = 0.15
"""Share of the counts whose letter is not in the word."""


def _count(rng: random.Random, level: int) -> Draft:
    text = word(rng, level)
    letter = rng.choice("abcdefghiklmnoprstuvwz") if rng.random() < ABSENT else rng.choice(text)
    seen, lines = 0, []
    for each in text:
        seen += each == letter
        lines.append(f"{each} {seen}")
    prompt = rng.choice(COUNTS).format(letter=letter, word=text)
    return Draft(f"word {text}", [user(prompt)], str(seen), [answer("\n".join(lines), str(seen))])


def _spell(rng: random.Random, level: int) -> Draft:
    text = word(rng, level)
    back = text[::-1]
    prompt = rng.choice(SPELLS).format(word=text)
    reasoning = " ".join(text) + "\n" + " ".join(back)
    return Draft(f"word {text}", [user(prompt)], back, [answer(reasoning, back)])


COUNT = Generator("count", "count a letter in a word", "letters of the word", (3, 5, 7, 9), 24, _count, same_text)
SPELL = Generator("spell", "spell a word backward", "letters of the word", (3, 4, 5, 6), 24, _spell, same_text)
