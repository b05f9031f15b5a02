"""Synthetic retrieval texts (report section 2.5): facts hidden in long texts, asked for at the end.

Three forms: single statements and chains of copied variables scattered through a haystack, and one long list of keys
and values. The haystack is the user's text or plain made-up sentences. Many facts and many questions a text, since only
the answers teach to look back. For the wordings see nano3.data.generated.facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nano3.config.errors import UserError
from nano3.data.generated.facts import Fact, Inventor
from nano3.data.generated.questions import GeneratedText, Question, asked_once, choose_block, question_block
from nano3.data.generated.words import ADJECTIVES, NOUNS, PLACES, TIMES, VERBS
from nano3.data.texts.passages import PassageIndex
from nano3.data.tokens.lengths import TOLERANCE, TokenCounter, fitted

SHORTEST = 255
"""Fewest tokens of a text, which with its marker fills a sequence of 256: in fewer, facts and questions leave no room
for a haystack."""
FORMS = {"statements": 0.5, "list": 0.25, "chains": 0.25}
"""Share of the texts that have each form."""
OPENINGS = (
    "",
    "",
    "Some facts are hidden in the text below. Remember them: questions follow at the end.",
    "Read carefully. What is asked for at the end is said somewhere in this text.",
    "This text is long; a few of its lines matter. They are asked for below it.",
    "Keep track of names and values while reading.",
)
HEADERS = (
    "Index",
    "Register of {p}",
    "List kept by {p}",
    "Table",
    "All entries",
    "Ledger of {p}",
    "From the files of {p}",
)
NOISE_SENTENCES = 2048
MOST_FACTS = 0.7
"""Facts and questions take at most this share of a text."""
LEAST_CORPUS = 1500
"""Haystacks of fewer tokens are made-up sentences, which leave more places to put a fact."""
FEW = 1024
"""Texts of fewer tokens have no UUIDs."""
COUNTED = 16
TRIES = 8


@dataclass(frozen=True)
class _Style:
    """What stands before and after each sentence of a haystack."""

    before: str
    after: str
    corpus: bool

    def mark(self, sentence: str) -> str:
        return self.before + sentence + self.after


class RetrievalTexts:
    """Texts by index; each depends on seed, index, its length, the corpus and the counts of the tokenizer."""

    def __init__(self, counter: TokenCounter, seed: int, passages: PassageIndex | None = None) -> None:
        """Without `passages` all haystacks are made-up sentences."""
        self._counter, self._seed, self._passages = counter, seed, passages
        self._by_cost: dict[_Style, dict[int, list[str]]] = {}
        rng = random.Random(f"noise {seed}")
        self._noise = [_noise_sentence(rng) for _ in range(NOISE_SENTENCES)]
        counter.learn([*_samples(rng), *(" " + sentence for sentence in self._noise[:100])])

    def make(self, index: int, tokens: int) -> GeneratedText:
        """Text number `index`, of at most `tokens` tokens and at least 99 % of them.

        Raises:
            UserError: `tokens` is below SHORTEST.
        """
        if tokens < SHORTEST:
            raise UserError(f"a retrieval text of {tokens} tokens is too short: the least is {SHORTEST}")
        questions: dict[str, tuple[Question, ...]] = {}

        def build(budget: int) -> tuple[str, int]:
            for attempt in range(TRIES):
                rng = random.Random(f"retrieval {self._seed} {index} {attempt}")
                text, count, asked = self._build(rng, budget)
                if TOLERANCE * budget <= count <= budget and asked_once(text, asked):
                    break
            questions[text] = asked
            return text, count

        text, count = fitted(build, self._counter, tokens)
        return GeneratedText(text, questions[text], count)

    def _build(self, rng: random.Random, budget: int) -> tuple[str, int, tuple[Question, ...]]:
        """One text with its tokens, as the sum of its pieces, and its questions."""
        block = choose_block(rng)
        form = rng.choices(list(FORMS), list(FORMS.values()))[0]
        opening = rng.choice(OPENINGS)
        opening = opening and opening + "\n\n"
        make_facts = self._entries if form == "list" else self._scattered
        facts, asked = make_facts(rng, form, block, budget)
        tail = _tail(block, facts, asked)
        around = sum(self._counter.estimate([opening, tail]))
        body, count = self._body(rng, form, facts, budget - around)
        body = opening + body
        return body + tail, around + count, tuple(_question(facts[i], body) for i in asked)

    def _scattered(
        self, rng: random.Random, form: str, block: tuple[str, str], budget: int
    ) -> tuple[list[Fact], list[int]]:
        """Facts for a text of `budget` tokens, and the numbers of those asked for, in the order of the questions."""
        inventor, n_asked = Inventor(rng, budget < FEW), _n_asked(budget)
        facts = inventor.chains(n_asked) if form == "chains" else inventor.facts(n_asked * 2)
        asked = rng.sample(range(len(facts)), min(n_asked, len(facts)))
        costs = [sum(self._counter.estimate([s + "\n" for s in fact.sentences])) for fact in facts]
        while len(facts) > 1 and sum(costs) + self._cost(block, facts, asked) > MOST_FACTS * budget:
            if len(asked) > max(1, len(facts) // 2):
                asked.pop()
            else:
                facts.pop()
                costs.pop()
                asked = [i for i in asked if i < len(facts)] or [0]
        return facts, asked

    def _entries(
        self, rng: random.Random, form: str, block: tuple[str, str], budget: int
    ) -> tuple[list[Fact], list[int]]:
        """Lines of a list that takes all of the text, or a part of it; and those asked for."""
        del form
        inventor, share = Inventor(rng, budget < FEW), rng.choice((1.0, 1.0, 0.5, 0.25))
        sample = inventor.alike(random.Random(rng.random())).entries(16)
        entry = sum(self._counter.estimate([fact.sentences[0] + "\n" for fact in sample])) / len(sample)
        question = self._cost(block, sample, list(range(len(sample)))) / len(sample)
        n_asked = max(1, min(_n_asked(budget), int(0.4 * budget / question)))
        room = 0.9 * (budget - n_asked * question) - 64
        facts = inventor.entries(max(2, int(share * room / entry) - 1))
        return facts, rng.sample(range(len(facts)), min(n_asked, len(facts)))

    def _cost(self, block: tuple[str, str], facts: list[Fact], asked: list[int]) -> int:
        return self._counter.estimate([_tail(block, facts, asked)])[0]

    def _body(self, rng: random.Random, form: str, facts: list[Fact], room: int) -> tuple[str, int]:
        """All facts and haystack around them, and its tokens: `room` or as little less as can be."""
        style = self._style(rng, form, room)
        slots = _block(rng, facts) if form == "list" else _scatter(rng, facts, style)
        first, last = rng.choice(self._noise) + style.after, style.before + rng.choice(self._noise) + "\n\n"
        *costs, of_first, of_last = self._counter.estimate([*(text for text, _ in slots), first, last])
        hay = room - sum(costs) - of_last
        used, filled = of_first, [(0.0, first)]
        pieces = self._haystack(rng, style, hay - used)
        for text, cost in pieces:
            filled.append((used / hay, text))
            used += cost
        # A stable sort keeps the order of all that have one place, and `first` before them.
        filled += [(max(place, 1e-9), text) for text, place in slots]
        filled.sort(key=lambda part: part[0])
        return "".join([text for _, text in filled] + [last]), sum(costs) + used + of_last

    def _style(self, rng: random.Random, form: str, room: int) -> _Style:
        if self._passages is not None and room >= LEAST_CORPUS and rng.random() < 0.6:
            return _Style("", "\n\n", True)
        return _Style(" ", "", False) if form != "list" and rng.random() < 0.5 else _Style("", "\n", False)

    def _haystack(self, rng: random.Random, style: _Style, tokens: int) -> list[tuple[str, int]]:
        """Pieces with their tokens, `tokens` in all or as few fewer as can be."""
        pieces: list[tuple[str, int]] = []
        sentences = self._sentences(style)
        longest = max(sentences)
        for piece in self._chunks(rng) if style.corpus else ():
            if piece[1] > tokens - 3 * longest:
                break
            pieces.append(piece)
            tokens -= piece[1]
        while tokens > 3 * longest:
            text = style.mark(rng.choice(self._noise))
            (cost,) = self._counter.estimate([text])
            pieces.append((text, cost))
            tokens -= cost
        last = self._exact(rng, sentences, tokens)
        place = rng.randint(0, len(pieces))
        return pieces[:place] + last + pieces[place:]

    def _exact(self, rng: random.Random, sentences: dict[int, list[str]], tokens: int) -> list[tuple[str, int]]:
        """A few sentences of `tokens` tokens in all or as few fewer as can be."""
        best: list[int] = []
        for _ in range(TRIES * 4):
            costs: list[int] = []
            while sum(costs) < tokens and tokens - sum(costs) not in sentences:
                costs.append(rng.choice(list(sentences)))
            costs = [*costs, tokens - sum(costs)] if sum(costs) < tokens else costs[:-1]
            best = max(best, costs, key=sum)
            if sum(best) == tokens:
                break
        return [(rng.choice(sentences[cost]), cost) for cost in best]

    def _sentences(self, style: _Style) -> dict[int, list[str]]:
        """The made-up sentences as they stand in a text, by their tokens."""
        if style not in self._by_cost:
            texts = [style.mark(sentence) for sentence in self._noise]
            self._by_cost[style] = {}
            for text, cost in zip(texts, self._counter.estimate(texts), strict=True):
                self._by_cost[style].setdefault(cost, []).append(text)
        return self._by_cost[style]

    def _chunks(self, rng: random.Random) -> Iterator[tuple[str, int]]:
        """The corpus in small pieces, section after section in a random order, again and again."""
        assert self._passages is not None
        while True:
            for section in rng.sample(range(len(self._passages.sections)), len(self._passages.sections)):
                texts = [chunk + "\n\n" for chunk in self._passages.chunks(section)]
                for first in range(rng.randrange(len(texts)), len(texts), COUNTED):
                    batch = texts[first : first + COUNTED]
                    yield from zip(batch, self._counter.counts(batch), strict=True)


def _n_asked(tokens: int) -> int:
    return min(128, max(3, tokens // 300))


def _tail(block: tuple[str, str], facts: list[Fact], asked: list[int]) -> str:
    return question_block(block, [(facts[i].question, facts[i].answers[0]) for i in asked])


def _question(fact: Fact, body: str) -> Question:
    place = body.find(fact.sentences[0])
    return Question(fact.kind, fact.question, fact.answers, (*fact.sentences, *fact.also), place / len(body))


def _scatter(rng: random.Random, facts: list[Fact], style: _Style) -> list[tuple[str, float]]:
    """All sentences, each with its place in the haystack (0 to 1), evenly spread; those of one fact in their order."""
    owners = [i for i, fact in enumerate(facts) for _ in fact.sentences]
    rng.shuffle(owners)
    sentences = [iter(fact.sentences) for fact in facts]
    return [(style.mark(next(sentences[i])), (n + rng.random()) / len(owners)) for n, i in enumerate(owners)]


def _block(rng: random.Random, facts: list[Fact]) -> list[tuple[str, float]]:
    """The list as a whole, at one place."""
    place = rng.random()
    lines = [fact.sentences[0] + "\n" for fact in facts]
    lines[0] = rng.choice(HEADERS).format(p=rng.choice(PLACES)) + "\n\n" + lines[0]
    lines[-1] += "\n"
    return [(line, place) for line in lines]


def _samples(rng: random.Random) -> Iterator[str]:
    """Every kind of generated sentence, as it is counted."""
    for _ in range(24):
        inventor = Inventor(rng)
        facts = [*inventor.facts(6), *inventor.entries(4), *inventor.chains(2)]
        for style in (_Style(" ", "", False), _Style("", "\n", False), _Style("", "\n\n", False)):
            yield from (style.mark(sentence) for fact in facts for sentence in fact.sentences)
        yield from (line for line, _ in _block(rng, facts))
        yield _tail(choose_block(rng), facts, list(range(len(facts))))
    yield from (opening + "\n\n" for opening in OPENINGS if opening)


def _noise_sentence(rng: random.Random) -> str:
    """A sentence that says nothing of use."""
    first, second = (f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
    rest = rng.choice((f"near {rng.choice(PLACES)}", rng.choice(TIMES), f"and the {rng.choice(NOUNS)}"))
    others = ("They", "Someone", f"The {rng.choice(NOUNS)}", f"A traveller from the {first}")
    return f"{rng.choice((f'The {first}', *others))} {rng.choice(VERBS)} the {second} {rest}."
