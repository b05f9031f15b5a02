"""Long-document question answering (report section 2.5) made from a corpus alone, without a model.

Documents of the corpus stand one after the other; the questions at the end ask for things that occur in one place
only, at depths spread evenly over the text: see nano3.data.generated.document_questions for the kinds.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from nano3.config.errors import UserError
from nano3.data.generated.document_questions import KINDS, Documents, gives_away
from nano3.data.generated.questions import Question
from nano3.data.texts.passages import PassageIndex

TRIES = 6
NEARBY = 24
"""Lines tried around a place before no question is asked there."""


@dataclass(frozen=True)
class DocumentQA:
    """Documents with questions on them."""

    passages: tuple[str, ...]
    """Texts of the documents."""
    titles: tuple[str, ...]
    """Their names, all different."""
    questions: tuple[Question, ...]
    """At least one; `Question.document` is the number of the passage with the evidence."""

    @property
    def question(self) -> str:
        """The first question."""
        return self.questions[0].text

    @property
    def answers(self) -> tuple[str, ...]:
        """Spellings of the answer to the first question; any of them is right."""
        return self.questions[0].answers

    @property
    def positions(self) -> tuple[int, ...]:
        """Number of the passage with the evidence of each question."""
        return tuple(question.document for question in self.questions)


def make_example(
    index: int,
    seed: int,
    passages: PassageIndex,
    n_passages: int,
    n_questions: int = 1,
    kinds: Sequence[str] = tuple(KINDS),
) -> DocumentQA:
    """Example number `index` of a seed: single passages from all over the corpus, in random order.

    More passages with the same index and seed add to the same ones, so that as a rule the question stays.

    Args:
        index: number of the example.
        seed: another seed, other examples.
        passages: the corpus.
        n_passages: passages of the example.
        n_questions: questions, at depths spread evenly.
        kinds: names of KINDS to ask; WITHOUT_TITLES where titles are not shown.

    Raises:
        UserError: the corpus has fewer passages, or no question could be asked.
    """
    if not 1 <= n_passages <= len(passages.passages):
        raise UserError(f"{n_passages:,} passages are wanted; the texts have {len(passages.passages):,}")
    for attempt in range(TRIES):
        key = f"{seed} {index} {attempt}"
        order = list(range(len(passages.passages)))
        random.Random(f"passages {key}").shuffle(order)
        # The first of them is asked for, wherever it comes to stand.
        rng = random.Random(f"questions {key}")
        place = int(rng.random() * n_passages)
        order = [*order[1 : place + 1], order[0], *order[place + 1 : n_passages]]
        chosen = [passages.passages[i] for i in order]
        titles = [_passage_title(passages, section, part) for section, part in chosen]
        texts = [passages.text(section, part, part + 1) for section, part in chosen]
        documents = Documents(titles, texts)
        if n_questions == 1:
            questions = _ask_near(documents, place, 0, kinds, rng, [])
        else:
            questions = ask(documents, n_questions, kinds, rng)
        if questions:
            return DocumentQA(tuple(texts), tuple(titles), tuple(questions))
    raise UserError("no question could be asked about these texts: they have no line that occurs only once")


def ask(documents: Documents, n_questions: int, kinds: Sequence[str], rng: random.Random) -> list[Question]:
    """At most `n_questions`, about places spread evenly over all documents; in the order of the documents."""
    ends = list(accumulate(len(text) for text in documents.texts))
    questions: list[Question] = []
    for n in range(n_questions):
        place = int((n + rng.random()) / n_questions * ends[-1])
        document = min(bisect_right(ends, place), len(ends) - 1)
        character = place - (ends[document] - len(documents.texts[document]))
        unit = documents.unit_at(document, character)
        questions += _ask_near(documents, document, unit, kinds, rng, questions)
    return questions


def _ask_near(
    documents: Documents, document: int, unit: int, kinds: Sequence[str], rng: random.Random, asked: Sequence[Question]
) -> list[Question]:
    """One question about a line or one near it in the same document, or none.

    No evidence of the questions `asked` comes again, and no answer stands in another question.
    """
    if document in documents.closed:
        return []
    used = {part for other in asked for part in other.evidence}
    n = len(documents.units(document))
    near = [u for u in (*range(unit, unit + NEARBY), *range(unit - 1, unit - NEARBY, -1)) if 0 <= u < n]
    for kind in rng.sample(list(kinds), len(kinds)):
        for u in near:
            question = KINDS[kind](documents, document, u, rng)
            if question is None or used & set(question.evidence):
                continue
            if not any(gives_away(question, other) or gives_away(other, question) for other in asked):
                return [question]
    return []


def _passage_title(passages: PassageIndex, section: int, part: int) -> str:
    found = passages.sections[section]
    return found.title if len(found) == 1 else f"{found.title}, passage {part + 1}"
