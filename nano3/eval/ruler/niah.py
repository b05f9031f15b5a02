"""Needles in a haystack: the eight `niah_*` tasks (scripts/data/synthetic/niah.py of the reference)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence

from nano3.eval.ruler import templates
from nano3.eval.ruler.catalogue import VARIANTS, Variant
from nano3.eval.ruler.sample import Draft, Plan, Request

N_DEPTHS = 40
DEPTHS = tuple(round(100 * i / (N_DEPTHS - 1)) for i in range(N_DEPTHS))
"""Percents of an essay haystack at which needles may lie."""


class Question:
    """Needles, question and answers of one sample; the haystack is added around them."""

    def __init__(self, request: Request, variant: Variant) -> None:
        rng = request.rng("needles")
        draw = Draw(request, variant, rng)
        self.kind = variant.value
        self.keys = [draw.key() for _ in range(variant.n_keys)]
        values = [[draw.value() for _ in range(variant.n_values)] for _ in self.keys]
        self.used = draw.used
        self.needles = [
            needle(self.kind, key, value) for key, own in zip(self.keys, values, strict=True) for value in own
        ]
        asked = rng.sample(range(variant.n_keys), variant.n_queries)
        self.answers = [value for number in asked for value in values[number]]
        self.query = _listed([self.keys[number] for number in asked])
        self.target = needle(self.kind, self.keys[asked[0]], self.answers[0]) if len(self.answers) == 1 else None
        rng.shuffle(self.needles)

    def draft(self, context: str) -> Draft:
        """The prompt around a haystack that holds the needles."""
        one = len(self.answers) == 1
        text = templates.NIAH_ONE if one else templates.NIAH_MANY
        prefix = templates.NIAH_ONE_PREFIX if one else templates.NIAH_MANY_PREFIX
        return Draft(
            text.format(kind=self.kind, context=context, query=self.query),
            prefix.format(kind=self.kind, query=self.query),
            self.answers,
            self._depth(context),
        )

    def _depth(self, context: str) -> float | None:
        if self.target is None:
            return None
        space = len(context) - len(self.target)
        return context.index(self.target) / space if space else 0.0


class Draw:
    """Random keys and values, none of them twice."""

    def __init__(self, request: Request, variant: Variant, rng: random.Random) -> None:
        words = request.sources.words
        kinds: dict[str, Callable[[], str]] = {
            "word": lambda: f"{rng.choice(words.adjectives)}-{rng.choice(words.nouns)}",
            "number": lambda: str(rng.randint(1_000_000, 9_999_999)),
            "uuid": lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        }
        self._key, self._value = kinds[variant.key], kinds[variant.value]
        self.used: set[str] = set()

    def key(self) -> str:
        """A key that no needle has yet."""
        return self._fresh(self._key)

    def value(self) -> str:
        """A value that no needle has yet."""
        return self._fresh(self._value)

    def _fresh(self, kind: Callable[[], str]) -> str:
        while (item := kind()) in self.used:
            pass
        self.used.add(item)
        return item

    def other(self, taken: set[str]) -> tuple[str, str]:
        """A key and a value of the haystack: two lines may share a key, none has one of `taken`."""
        while (key := self._key()) in taken:
            pass
        while (value := self._value()) in taken:
            pass
        return key, value


def needle(kind: str, key: str, value: str) -> str:
    """The sentence that tells a value."""
    return templates.NEEDLE.format(kind=kind, key=key, value=value)


def plan(request: Request) -> Plan:
    """The prompt of a `niah_*` task, in units of its haystack."""
    variant = VARIANTS[request.task]
    question = Question(request, variant)
    return HAYSTACKS[variant.haystack](request, variant, question)


def _noise(request: Request, variant: Variant, question: Question) -> Plan:
    line = " ".join(templates.NOISE)
    return _lines(request, question, lambda n: [line] * n)


def _needles(request: Request, variant: Variant, question: Question) -> Plan:
    draw = Draw(request, variant, request.rng("haystack"))
    written: list[str] = []

    def lines(n: int) -> list[str]:
        while len(written) < n:
            written.append(needle(question.kind, *draw.other(question.used)))
        return written[:n]

    return _lines(request, question, lines)


def _lines(request: Request, question: Question, lines: Callable[[int], list[str]]) -> Plan:
    """Needles between lines at uniformly drawn places; a rest too short for a line is filled with words of noise."""

    def build(n: int, filler: int = 0) -> Draft:
        context = lines(n)
        n_needles = len(question.needles)
        places = sorted(request.rng("places").sample(range(max(n, n_needles)), n_needles), reverse=True)
        for place, sentence in zip(places, question.needles, strict=True):
            context.insert(place, sentence)
        if filler:
            context.append(" ".join(templates.FILLER[i % len(templates.FILLER)] for i in range(filler)))
        return question.draft("\n".join(context))

    return Plan(build, refine=lambda n: Plan(lambda filler: build(n, filler)))


def _essay(request: Request, variant: Variant, question: Question) -> Plan:
    """Needles between the sentences of the essays' first words, each at a depth of its own."""
    essays = request.sources.essays
    depths = sorted(request.rng("places").sample(DEPTHS, len(question.needles)))

    def build(n: int) -> Draft:
        sentences = essays.sentences(n)
        cuts = [int(len(sentences) * depth / 100) for depth in depths]
        return question.draft(" ".join(_interleave(sentences, cuts, question.needles)))

    return Plan(build)


def _interleave(sentences: Sequence[str], cuts: Sequence[int], needles: Sequence[str]) -> list[str]:
    parts: list[str] = []
    start = 0
    for cut, sentence in zip(cuts, needles, strict=True):
        parts += sentences[start:cut]
        parts.append(sentence)
        start = cut
    return [*parts, *sentences[start:]]


def _listed(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]


HAYSTACKS = {"noise": _noise, "needle": _needles, "essay": _essay}
