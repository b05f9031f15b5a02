"""Texts of document question answering with a wanted number of tokens, for training (report section 2.5)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

from nano3.config.errors import UserError
from nano3.data.generated.document_qa import ask
from nano3.data.generated.document_questions import KINDS, Documents
from nano3.data.generated.questions import GeneratedText, Question, choose_block, question_block
from nano3.data.texts.passages import PASSAGE_CHARACTERS, SECTION_PASSAGES, PassageIndex
from nano3.data.tokens.lengths import TOLERANCE, TokenCounter, fitted

SHORTEST = 255
"""Fewest tokens of a text: with its marker it fills a sequence of 256."""
OPENINGS = (
    "",
    "",
    "Read the documents below and answer the questions at their end.",
    "Several documents follow, then questions about them.",
    "The answers to the questions at the end are found in these documents.",
)
FRAMES = (
    ("Document {n}: {title}\n\n", "\n\n"),
    ("### {title}\n\n", "\n\n"),
    ("Title: {title}\n\n", "\n\n"),
    ("[{n}] {title}\n\n", "\n\n"),
    ('<document name="{title}">\n', "\n</document>\n\n"),
    ("===== {title} =====\n\n", "\n\n"),
)
"""Before and after each document."""
TRIES = 16
WRITER_TRIES = 2
"""Drafts of a text whose questions are asked of a writer."""
MISSES = 4
"""Documents that do not fit before shorter ones are taken, and then none."""
COST = 75
"""Tokens kept for a question and its answer."""
CHARACTERS = 3.0
"""Characters of a token, at a low guess, to choose documents before they are counted."""


class Writer(Protocol):
    """Writes questions about documents, see nano3.data.generated.question_writer."""

    def ask(self, documents: Documents, n_questions: int, rng: random.Random) -> list[Question]:
        """At most `n_questions` about places spread evenly over the documents."""
        ...

    def state(self) -> str:
        """What was asked for and dropped so far, for an error."""
        ...


@dataclass(frozen=True)
class _Shape:
    """How long a document may be, in passages and in characters."""

    passages: int
    characters: int


@dataclass(frozen=True)
class _Run:
    """Consecutive passages as one document, and the tokens of its text with what stands after it."""

    title: str
    text: str
    tokens: int


@dataclass(frozen=True)
class _Draft:
    """A text before the length of its last document is set."""

    opening: str
    block: tuple[str, str]
    frame: tuple[str, str]
    runs: list[_Run]
    cut: int
    """Number of the document whose length is free."""
    asked: list[Question]


class DocumentTexts:
    """Texts by index; each depends on seed, index, its length, the corpus and the counts of the tokenizer."""

    def __init__(self, counter: TokenCounter, seed: int, passages: PassageIndex, writer: Writer | None = None) -> None:
        """Questions are those of `writer` where there is one, else of KINDS."""
        self._counter, self._seed, self._passages, self._writer = counter, seed, passages, writer

    def make(self, index: int, tokens: int) -> GeneratedText:
        """Text number `index`, of at most `tokens` tokens and at least 99 % of them.

        Raises:
            UserError: `tokens` is below SHORTEST, or the corpus has too little text for it.
        """
        if tokens < SHORTEST:
            raise UserError(f"a document-qa text of {tokens} tokens is too short: the least is {SHORTEST}")
        questions: dict[str, tuple[Question, ...]] = {}
        drafts: dict[int, _Draft] = {}

        def draft(attempt: int, budget: int) -> _Draft:
            rng = random.Random(f"document-qa {self._seed} {index} {attempt}")
            if self._writer is None:
                return self._draft(rng, budget)
            # Another budget changes the length alone: what a writer was asked is not asked again.
            if attempt not in drafts:
                drafts[attempt] = self._draft(rng, budget)
            return drafts[attempt]

        def build(budget: int) -> tuple[str, int]:
            text, count = "", 0
            for attempt in range(WRITER_TRIES if self._writer else TRIES):
                text, count, asked = self._compose(draft(attempt, budget), budget)
                questions[text] = asked
                if asked and TOLERANCE * budget <= count <= budget:
                    break
            if self._writer and not text:
                raise UserError(
                    f"no question could be written about a text of {tokens:,} tokens ({self._writer.state()})"
                )
            return text, count

        text, count = fitted(build, self._counter, tokens)
        if not questions[text]:
            raise UserError("no question could be asked about the texts: give other ones in data.generate.sources")
        return GeneratedText(text, questions[text], count)

    def _draft(self, rng: random.Random, budget: int) -> _Draft:
        """Documents of more than `budget` tokens with their questions."""
        block, frame = choose_block(rng), rng.choice(FRAMES)
        opening = rng.choice(OPENINGS)
        opening = opening and opening + "\n\n"
        n_asked = min(96, max(6, budget // 250))
        for_questions = min(n_asked * COST, budget * 2 // 5)
        runs, cut = self._runs(rng, frame, budget - for_questions - len(opening) // 2)
        documents = Documents([run.title for run in runs], [run.text for run in runs], frozenset([cut]))
        if self._writer is None:
            asked = ask(documents, n_asked, tuple(KINDS), rng)
        else:
            asked = self._writer.ask(documents, n_asked, rng)
        return _Draft(opening, block, frame, runs, cut, self._affordable(rng, block, asked, for_questions))

    def _compose(self, draft: _Draft, budget: int) -> tuple[str, int, tuple[Question, ...]]:
        """One text with its tokens, as the sum of its pieces, and its questions."""
        if not draft.asked:
            return "", 0, ()
        opening, frame, runs, cut = draft.opening, draft.frame, draft.runs, draft.cut
        tail = question_block(draft.block, [(question.text, question.answer) for question in draft.asked])
        heads = [frame[0].format(n=n, title=run.title) for n, run in enumerate(runs, start=1)]
        around = sum(self._counter.measure([opening, tail, *(h for i, h in enumerate(heads) if i != cut)]))
        around += sum(run.tokens for i, run in enumerate(runs) if i != cut)
        last = self._counter.prefix(heads[cut], runs[cut].text, frame[1], budget - around)
        pieces = [head + run.text + frame[1] for head, run in zip(heads, runs, strict=True)]
        pieces[cut] = last[0]
        body = opening + "".join(pieces)
        placed = (replace(q, depth=body.find(q.evidence[0]) / len(body)) for q in draft.asked)
        return body + tail, around + last[1], tuple(placed)

    def _affordable(
        self, rng: random.Random, block: tuple[str, str], asked: list[Question], tokens: int
    ) -> list[Question]:
        """A random choice of questions that take at most `tokens` tokens, in random order."""
        asked = rng.sample(asked, len(asked))
        costs = self._counter.measure([question_block(("", block[1]), [(q.text, q.answer)]) + "\n" for q in asked])
        left, kept = tokens - len(block[0]), []
        for question, cost in zip(asked, costs, strict=True):
            if cost <= left:
                kept.append(question)
                left -= cost
        return kept

    def _runs(self, rng: random.Random, frame: tuple[str, str], room: int) -> tuple[list[_Run], int]:
        """Documents of more than `room` tokens, of which the one with the number that is returned is to be cut."""
        characters = int(room * CHARACTERS)
        whole = characters > 0.3 * self._passages.n_characters
        shape = _Shape(
            passages=SECTION_PASSAGES
            if whole
            else max(1, min(SECTION_PASSAGES, characters // 5 // PASSAGE_CHARACTERS)),
            characters=max(160, characters // 3),
        )
        order = rng.sample(range(len(self._passages.sections)), len(self._passages.sections))
        cut = self._long_section(order, 2 * shape.passages + 2)
        order.remove(cut)
        runs = self._whole_runs(rng, frame, order, shape, room - min(room // 10, 1500))
        left = room - sum(run.tokens for run in runs)
        text = self._passages.text(cut).lstrip()
        if left > max(room // 2, len(text)):
            raise UserError(
                f"a document-qa text of {room:,} tokens needs more than the {self._passages.n_characters:,} characters "
                "of the corpus: give more texts in data.generate.sources, or shorter lengths"
            )
        place = rng.randint(0, len(runs))
        runs.insert(place, _Run(self._passages.sections[cut].title, text[: max(400, left * 12)], 0))
        return runs, place

    def _long_section(self, order: list[int], passages: int) -> int:
        """The first section with so many passages, else the longest."""
        sections = self._passages.sections
        return next((s for s in order if len(sections[s]) >= passages), max(order, key=lambda s: len(sections[s])))

    def _whole_runs(
        self, rng: random.Random, frame: tuple[str, str], order: list[int], shape: _Shape, room: int
    ) -> list[_Run]:
        """Documents that fit into `room` tokens, their headings included at a guess."""
        runs, misses, size = [], 0, shape.passages
        for first in range(0, len(order), 16):
            drawn = [(s, self._stretch(rng, s, size, shape.characters)) for s in order[first : first + 16]]
            counts = self._counter.measure([text + frame[1] for _, text in drawn])
            for (section, text), count in zip(drawn, counts, strict=True):
                title = self._passages.sections[section].title
                cost = count + 8 + len(title) // 2
                if cost > room:
                    misses += 1
                else:
                    room -= cost
                    runs.append(_Run(title, text, count))
            if misses >= MISSES and size == 1:
                break
            if misses >= MISSES:
                misses, size = 0, 1
        return runs

    def _stretch(self, rng: random.Random, section: int, size: int, characters: int) -> str:
        """Some passages of a section; what is longer than `characters` is cut at a line or a space."""
        n = len(self._passages.sections[section])
        length = min(n, rng.randint((size + 1) // 2, size))
        start = rng.randint(0, n - length)
        text = self._passages.text(section, start, start + length).lstrip()
        if len(text) <= characters:
            return text
        text = text[:characters]
        return (text.rpartition("\n")[0] or text.rpartition(" ")[0] or text).rstrip()
