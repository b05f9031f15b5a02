"""Questions on a text with their answers, and how they are written below it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question whose answer lies in a text."""

    kind: str
    text: str
    answers: tuple[str, ...]
    """The answer, then other spellings that are as good."""
    evidence: tuple[str, ...]
    """Stretches of the text that give the answer; each occurs in it once."""
    depth: float
    """Where the first of them begins: 0 at the start of the text before the questions, 1 at its end."""
    document: int = -1
    """Number of the document with the evidence, where the text is made of documents."""

    @property
    def answer(self) -> str:
        """The answer as it is written."""
        return self.answers[0]


@dataclass(frozen=True)
class GeneratedText:
    """A text for training, its questions and their answers at its end."""

    text: str
    questions: tuple[Question, ...]
    tokens: int


BLOCKS = (
    ("", "Question: {question}\nAnswer: {answer}"),
    ("Questions about the text above\n\n", "Q: {question}\nA: {answer}"),
    ("", "Q: {question}\nA: {answer}"),
    ("Answer from the text above.\n\n", "Question: {question}\nAnswer: {answer}"),
    ("Questions and answers\n\n", "{question}\nAnswer: {answer}"),
    ("Some questions follow; all answers are found above.\n\n", "Question: {question}\nAnswer: {answer}"),
)
"""(heading, one question) of the block at the end of a text."""


def choose_block(rng: random.Random) -> tuple[str, str]:
    """A way to write the questions of one text."""
    return rng.choice(BLOCKS)


def question_block(block: tuple[str, str], questions: Sequence[tuple[str, str]]) -> str:
    """Questions with their answers, one below the other; ends in a line break."""
    return block[0] + "\n\n".join(block[1].format(question=q, answer=a) for q, a in questions) + "\n"


def asked_once(text: str, questions: Sequence[Question]) -> bool:
    """Whether all evidence occurs in the text, and only once."""
    for evidence in {part for question in questions for part in question.evidence}:
        place = text.find(evidence)
        if place < 0 or text.find(evidence, place + 1) >= 0:
            return False
    return True
