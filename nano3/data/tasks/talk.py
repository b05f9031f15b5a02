"""Small talk: greetings, what the assistant is, and remembering what the user said before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.tasks.lexicon import NAMES, WORDS
from nano3.data.tasks.task import Draft, Generator, Message, answer, final_text, user

LONGEST = 25
"""Words of an answer above which it is not one."""
FIXED = (
    (
        ("Hello!", "Hi!", "Hi there!", "Hey!", "Good morning!"),
        "Hello! How can I help?",
        ["hello"],
    ),
    (
        ("How are you?", "How do you do?", "Hello, how are you?", "Hi, how are you today?"),
        "I am fine, thank you. How can I help?",
        ["fine"],
    ),
    (
        ("What can you do?", "What can I ask you?", "Can you help me?", "Help!"),
        "I can spell words, count letters, sort and add numbers, write JSON and use tools.",
        ["spell", "count"],
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Are you a robot?"),
        "I am a small language model.",
        ["language", "model"],
    ),
    (("Thanks!", "Thank you!", "Thanks a lot!", "Thank you very much."), "You are welcome!", ["welcome"]),
    (("Bye!", "Goodbye!", "See you!", "Good night!"), "Goodbye!", ["goodbye"]),
)
UNKNOWN = "I do not know that."
ABOUT = (
    "What is a {}?",
    "Tell me about the {}.",
    "Where is the {}?",
    "Why is the {} so big?",
    "Is the {} blue?",
    "Do you like the {}?",
    "Who made the {}?",
    "Tell me a joke about a {}.",
    "Write a poem about a {}.",
)
"""What a model of this size cannot answer, and says so."""
SHARE_FIXED, SHARE_UNKNOWN = 0.55, 0.2
"""Shares of the first level's tasks that are one of the fixed, or one to which the answer is not known; the others
introduce the user."""
SHARE_LOOSE = 0.5
"""Share of both without capitals, and without a mark at the end."""
SHARE_PLAIN = 0.5
"""Share of the answers without reasoning: small talk needs none, and is asked for with thinking off too."""
INTRODUCTIONS = ("Hi, I am {name}.", "Hello, my name is {name}.", "I am {name}.")


def _make(rng: random.Random, level: int) -> Draft:
    if level == 1:
        (make,) = rng.choices(
            (_fixed, _unknown, _greeting), (SHARE_FIXED, SHARE_UNKNOWN, 1 - SHARE_FIXED - SHARE_UNKNOWN)
        )
        return make(rng)
    return _memory(rng, level)


def _fixed(rng: random.Random) -> Draft:
    questions, reply, needed = rng.choice(FIXED)
    return Draft("", [user(_loose(rng, rng.choice(questions)))], needed, [_said(rng, "A short reply.", reply)])


def _unknown(rng: random.Random) -> Draft:
    question = rng.choice(ABOUT).format(rng.choice(WORDS))
    solution = [_said(rng, "I do not know.", UNKNOWN)]
    return Draft(f"talk {question}", [user(_loose(rng, question))], ["not", "know"], solution)


def _loose(rng: random.Random, question: str) -> str:
    """Half of them as people type them."""
    if rng.random() < SHARE_LOOSE:
        question = question.lower()
    return question.rstrip("!?.") if rng.random() < SHARE_LOOSE else question


def _said(rng: random.Random, reasoning: str, reply: str) -> Message:
    return answer("" if rng.random() < SHARE_PLAIN else reasoning, reply)


def _greeting(rng: random.Random) -> Draft:
    name, thing = rng.choice(NAMES), rng.choice(WORDS)
    words = rng.choice(INTRODUCTIONS).format(name=name)
    prompt = [user(f"{words} I like {thing}.")]
    reply = f"Hello {name}! I like {thing} too."
    return Draft(f"talk {name} {thing}", prompt, [name, thing], [_said(rng, f"The user is {name}.", reply)])


def _memory(rng: random.Random, level: int) -> Draft:
    """The user says one thing a turn, and asks for one of them in the last turn."""
    kinds, things = rng.sample(list(_TELL), level - 1), rng.sample(WORDS, level - 1)
    facts = [(kind, rng.choice(NAMES) if kind == "name" else thing) for kind, thing in zip(kinds, things, strict=True)]
    messages: list[Message] = []
    for kind, value in facts:
        said, reply = _TELL[kind]
        messages += [user(said.format(value)), {"role": "assistant", "content": reply.format(value)}]
    kind, value = rng.choice(facts)
    question, reply = _ASK[kind]
    content = "talk " + " ".join(f"{each} {what}" for each, what in facts) + f" {kind}"
    solution = [_said(rng, f"The user said {value}.", reply.format(value))]
    return Draft(content, [*messages, user(question)], [value], solution)


_TELL = {
    "name": ("Hi, I am {}.", "Hello {}!"),
    "like": ("I like {}.", "Good to know."),
    "have": ("I have a {}.", "How nice."),
    "want": ("I want a {}.", "I see."),
}
_ASK = {
    "name": ("What is my name?", "Your name is {}."),
    "like": ("What do I like?", "You like {}."),
    "have": ("What do I have?", "You have a {}."),
    "want": ("What do I want?", "You want a {}."),
}


def _check(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """1 where the answer is short and has all words that it should have."""
    words = "".join(c if c.isalnum() else " " for c in (final_text(replies) or "").lower()).split()
    return float(0 < len(words) <= LONGEST and all(word.lower() in words for word in truth))


TALK = Generator("talk", "greetings, and remembering what was said", "turns of the user", (1, 2, 3), 5, _make, _check)
