"""Made-up facts to hide in a text and to ask for: statements, lists and chains, in many wordings.

The families are those of needle-in-a-haystack tests (one value, several values of a key, keys alike, chains of
variables), but no sentence is one of RULER's ("One of the special magic numbers for ... is ...", "VAR X1 = ..."), so
that a model trained on them is not trained on that test's wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from nano3.data.generated.words import ADJECTIVES, ATTRIBUTES, NOUNS, PLACES

STATEMENTS = (
    "For the record, the {a} of the {k} is {v}.",
    "The {k} was given the {a} {v}.",
    "According to {p}, the {k} has {v} as its {a}.",
    "Keep in mind that {v} is the {a} of the {k}.",
    "Note from {p}: the {a} of the {k} is now {v}.",
    "Whoever asks for the {a} of the {k} should be told {v}.",
    "The {a} that belongs to the {k} reads {v}.",
    "In the books of {p}, the {k} stands with the {a} {v}.",
    "{v} is what {p} lists as the {a} of the {k}.",
    "Memo: {k}, {a} {v}.",
    "They changed the {a} of the {k} to {v}.",
    "If you need the {a} of the {k}, it is {v}.",
)
ASKED = (
    "What is the {a} of the {k}?",
    "Which {a} belongs to the {k}?",
    "Give the {a} of the {k}.",
    "Find the {a} of the {k}.",
    "Somewhere above, the {k} is mentioned with its {a}. What is it?",
    "What {a} does the text state for the {k}?",
)
ASKED_BACK = (
    "What has the {a} {v}?",
    "The {a} {v} belongs to what?",
    "Of what is {v} the {a}?",
)
SEVERAL = (
    "The {k} has also been assigned the {a} {v}.",
    "Another {a} of the {k} is {v}.",
    "{v} counts as one {a} of the {k} too.",
    "Besides its others, the {k} carries the {a} {v}.",
)
ASKED_ALL = (
    "List every {a} of the {k}, in the order of the text.",
    "Which values are given as {a} of the {k}? Name all, as they appear.",
    "The {k} has more than one {a}. Give all of them in order.",
)
ENTRIES = ("{k}: {v}", "{k} = {v}", "{k} -> {v}", "{v} | {k}", "- {k}: {v}", '"{k}": "{v}",', "{k}\t{v}", "{k} ({v})")
ENTRY_ASKED = ("What is listed for {k}?", "Give the entry of {k}.", "Which value stands beside {k}?", "Look up {k}.")
ENTRY_ASKED_BACK = ("Beside what does {v} stand?", "Which entry has the value {v}?", "{v} is listed for what?")
ENTRY_ASKED_NEXT = ("What is listed right after {k}? Give its value.", "Which value follows that of {k} in the list?")
STARTS = ("Let {n} be {v}.", "{n} starts out as {v}.", "We begin with {n} = {v}.", "Write {v} on the card {n}.")
COPIES = (
    "{n} takes its value from {m}.",
    "Give {n} whatever {m} holds.",
    "{n} is a copy of {m}.",
    "From here on {n} stands for the same as {m}.",
    "Then {m} is copied to {n}.",
)
ASKED_END = ("What is the value of {n}?", "What does {n} hold?", "Follow the copies: what is {n}?")
ASKED_NAMES = (
    "Which names end up with the value {v}? List them as they come up.",
    "Name everything that holds {v}, in order.",
)


@dataclass(frozen=True)
class Fact:
    """Something said in one or more sentences (in this order), and a question on it."""

    kind: str
    sentences: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    also: tuple[str, ...] = ()
    """Sentences of other facts that the answer needs."""


class Inventor:
    """Facts about things that no other fact of the same inventor is about, unless they are meant to be alike."""

    def __init__(self, rng: random.Random, short: bool = False) -> None:
        """With `short` no UUIDs, which take many tokens."""
        self._rng = rng
        self._taken: set[str] = set()
        self._key_kind = rng.choice(("thing", "thing", "thing", "number", "number" if short else "uuid"))
        self._value_kind = rng.choice(("number", "code", "word", "number", "code" if short else "uuid"))

    def alike(self, rng: random.Random) -> Inventor:
        """Another one, with keys and values of the same kinds."""
        other = Inventor(rng)
        other._key_kind, other._value_kind = self._key_kind, self._value_kind
        return other

    def facts(self, n: int) -> list[Fact]:
        """`n` statements, some asked back, some with several values, some about the same thing as another."""
        facts: list[Fact] = []
        while len(facts) < n:
            facts += self._about(self.key("thing"), n - len(facts))
        return facts

    def entries(self, n: int) -> list[Fact]:
        """`n` lines of one list; the question on an entry may be for the one after it."""
        rng, form = self._rng, self._rng.choice(ENTRIES)
        pairs = [(self.key(self._key_kind), self.value(self._value_kind)) for _ in range(n)]
        lines = [form.format(k=key, v=value) for key, value in pairs]
        facts = []
        for i, (key, value) in enumerate(pairs):
            asked, answer, kind, also = rng.choice(ENTRY_ASKED), value, "entry", ()
            turn = rng.random()
            if turn < 0.15:
                asked, answer, kind = rng.choice(ENTRY_ASKED_BACK), key, "entry-back"
            elif turn < 0.3 and i + 1 < n:
                asked, answer, kind = rng.choice(ENTRY_ASKED_NEXT), pairs[i + 1][1], "entry-next"
                also = (lines[i + 1],)
            facts.append(Fact(kind, (lines[i],), asked.format(k=key, v=value), (answer,), also))
        return facts

    def chains(self, n: int) -> list[Fact]:
        """`n` chains of two to five names, each copied from one before it."""
        return [self._chain() for _ in range(n)]

    def key(self, kind: str) -> str:
        """A name that was not given out before."""
        return self._new(_KEYS[kind])

    def value(self, kind: str) -> str:
        """A value that was not given out before."""
        return self._new(_VALUES[kind])

    def _new(self, draw: Callable[[random.Random], str]) -> str:
        drawn, tries = draw(self._rng), 0
        while drawn in self._taken:
            tries += 1
            drawn = draw(self._rng) + (f" {self._rng.randint(2, 1 << tries)}" if tries > 8 else "")
        self._taken.add(drawn)
        return drawn

    def _about(self, key: str, most: int) -> list[Fact]:
        """One fact about a thing, or several under other attributes."""
        rng = self._rng
        if rng.random() < 0.15:
            return [self._several(key)]
        attributes = rng.sample(ATTRIBUTES, min(most, rng.choice((1, 1, 1, 2, 3))))
        return [self._statement(key, attribute) for attribute in attributes]

    def _statement(self, key: str, attribute: str) -> Fact:
        rng = self._rng
        value = self.value(rng.choice(("number", "code", "word")) if rng.random() < 0.5 else self._value_kind)
        words = {"k": key, "a": attribute, "v": value, "p": rng.choice(PLACES)}
        sentence = rng.choice(STATEMENTS).format(**words)
        if rng.random() < 0.2:
            return Fact("thing", (sentence,), rng.choice(ASKED_BACK).format(**words), (f"the {key}", key))
        return Fact("value", (sentence,), rng.choice(ASKED).format(**words), (value,))

    def _several(self, key: str) -> Fact:
        rng = self._rng
        attribute, values = rng.choice(ATTRIBUTES), [self.value(self._value_kind) for _ in range(rng.randint(2, 4))]
        forms = [rng.choice(STATEMENTS), *rng.choices(SEVERAL, k=len(values) - 1)]
        sentences = [
            form.format(k=key, a=attribute, v=value, p=rng.choice(PLACES))
            for form, value in zip(forms, values, strict=True)
        ]
        question = rng.choice(ASKED_ALL).format(k=key, a=attribute)
        return Fact("values", tuple(sentences), question, (", ".join(values),))

    def _chain(self) -> Fact:
        rng = self._rng
        names, value = [self._new(_name) for _ in range(rng.randint(2, 5))], self.value("number")
        sentences = [rng.choice(STARTS).format(n=names[0], v=value)]
        for place, name in enumerate(names[1:], start=1):
            source = rng.choice(names[:place]) if rng.random() < 0.3 else names[place - 1]
            sentences.append(rng.choice(COPIES).format(n=name, m=source))
        if rng.random() < 0.4:
            return Fact("chain-names", tuple(sentences), rng.choice(ASKED_NAMES).format(v=value), (", ".join(names),))
        return Fact("chain", tuple(sentences), rng.choice(ASKED_END).format(n=names[-1]), (value,))


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def _word(rng: random.Random) -> str:
    return f"{rng.choice(NOUNS)}-{rng.choice(NOUNS)}-{rng.randint(2, 99)}"


def _number(rng: random.Random) -> str:
    return str(rng.randint(10_000, 99_999_999))


def _code(rng: random.Random) -> str:
    return f"{rng.getrandbits(16):04x}-{rng.getrandbits(16):04x}"


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _name(rng: random.Random) -> str:
    return f"{rng.choice(NOUNS)}{rng.randint(1, 999)}"


Draw = Callable[[random.Random], str]
_KEYS: dict[str, Draw] = {"thing": _thing, "number": _number, "uuid": _uuid}
_VALUES: dict[str, Draw] = {"number": _number, "code": _code, "uuid": _uuid, "word": _word}
