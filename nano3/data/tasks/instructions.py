"""Instructions on a list of words: several constraints at once, each checked by itself."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.tasks.lexicon import WORDS
from nano3.data.tasks.task import Draft, Generator, answer, final_text, user

OPENINGS = ("Write a list of words.", "Give me some words.")
KINDS = ("number", "upper", "first", "last", "commas", "repeat")


def _make(rng: random.Random, level: int) -> Draft:
    kinds = rng.sample(KINDS, level)
    words = rng.sample(WORDS, rng.randint(3, 7))
    wanted: dict[str, Any] = {}
    asked = []
    if "repeat" in kinds:
        times = rng.randint(2, 3)
        words[1:2] = [words[1]] * times
        wanted["repeat"] = [words[1], times]
        asked.append(f"Use the word {words[1]} exactly {times} times.")
    if "number" in kinds:
        wanted["number"] = len(words)
        asked.append(f"Use exactly {len(words)} words.")
    if "first" in kinds:
        wanted["first"] = words[0]
        asked.append(f"Start with the word {words[0]}.")
    if "last" in kinds:
        wanted["last"] = words[-1]
        asked.append(f"End with the word {words[-1]}.")
    if "upper" in kinds:
        wanted["upper"] = True
        asked.append("Use upper case only.")
    if "commas" in kinds:
        wanted["commas"] = True
        asked.append("Put commas between the words.")
    rng.shuffle(asked)
    text = (", " if "commas" in kinds else " ").join(words)
    text = text.upper() if "upper" in kinds else text
    reasoning = " ".join(f"{number} {word}" for number, word in enumerate(words, start=1))
    prompt = " ".join([rng.choice(OPENINGS), *asked])
    return Draft(f"instructions {sorted(wanted.items())}", [user(prompt)], wanted, [answer(reasoning, text)])


def _check(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """1 where all constraints hold."""
    text = final_text(replies)
    if not text:
        return 0.0
    words = [word.strip() for word in (text.split(",") if "commas" in truth else text.split())]
    if not all(re.fullmatch("[A-Za-z]+", word) for word in words):
        return 0.0
    lower = [word.lower() for word in words]
    held = {
        "number": lambda wanted: len(words) == wanted,
        "first": lambda wanted: lower[0] == wanted,
        "last": lambda wanted: lower[-1] == wanted,
        "repeat": lambda wanted: lower.count(wanted[0]) == wanted[1],
        "upper": lambda _: text == text.upper(),
        # Already read with commas; one word has none, so there is no list.
        "commas": lambda _: len(words) > 1,
    }
    return float(all(held[kind](wanted) for kind, wanted in truth.items()))


INSTRUCTIONS = Generator(
    "instructions", "write words under constraints", "constraints at once", (1, 2, 3), len(KINDS), _make, _check
)
