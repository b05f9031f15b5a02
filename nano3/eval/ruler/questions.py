"""Questions with their documents: SQuAD 2.0 and HotpotQA files, or questions made from a corpus."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.ruler.reference import digest, is_reference
from nano3.reading import read_json

if TYPE_CHECKING:
    from nano3.data.texts.passages import PassageIndex

ONE_PASSAGE = ("cloze", "enclosing")
TWO_PASSAGES = ("shared", "next-document")
"""Kinds of nano3.data.generated.document_questions whose answer is short and takes one passage, or two."""
PASSAGE_CHARACTERS = 400


@dataclass(frozen=True)
class Question:
    """One question and where its answer is found."""

    query: str
    answers: Sequence[str]
    """Spellings of the answer; any of them is right."""
    gold: Sequence[str]
    """Documents that are always there."""
    near: Sequence[str]
    """Documents about the same things, added before others."""


@dataclass(frozen=True)
class FileQuestions:
    """Questions read from a file."""

    label: str
    is_reference: bool
    documents: Sequence[str]
    questions: Sequence[Question]

    @property
    def count(self) -> int:
        """Questions of the file."""
        return len(self.questions)

    def question(self, index: int) -> Question:
        """In the order of the file, as the reference asks them."""
        if index >= len(self.questions):
            raise UserError(f"{self.label} has {len(self.questions)} questions: ask for at most as many samples")
        return self.questions[index]


@dataclass(frozen=True)
class CorpusQuestions:
    """Questions made from Python's own documentation and sources (data/generated/document_qa.py), without a model."""

    kinds: tuple[str, ...]
    is_reference = False

    @property
    def label(self) -> str:
        """Says that neither SQuAD nor HotpotQA was used."""
        from nano3.data.texts.stdlib_corpus import NAME

        return f"nano3 document QA on {NAME} {platform.python_version()} ({', '.join(self.kinds)})"

    @property
    def least(self) -> int:
        """Passages of the shortest question."""
        return 1 if self.kinds == ONE_PASSAGE else 3

    @property
    def n_passages(self) -> int:
        """Passages of the corpus."""
        return len(_corpus().passages)

    def ask(self, index: int, seed: int, n: int) -> tuple[list[str], str, Sequence[str]]:
        """`n` passages, a question about them and its answers; passages bear their titles where questions name them."""
        from nano3.data.generated.document_qa import make_example

        example = make_example(index, seed, _corpus(), n, kinds=self.kinds)
        if self.kinds == ONE_PASSAGE:
            return list(example.passages), example.question, example.answers
        titled = [f"{title}\n{text}" for title, text in zip(example.titles, example.passages, strict=True)]
        return titled, example.question, example.answers


@lru_cache(maxsize=1)
def _corpus() -> PassageIndex:
    from nano3.data.texts.passages import PassageIndex
    from nano3.data.texts.skipped import Skipped
    from nano3.data.texts.stdlib_corpus import StandardLibrary

    documents = [document for document in StandardLibrary().documents(Skipped()) if document is not None]
    return PassageIndex(documents, PASSAGE_CHARACTERS)


def read_squad(path: Path) -> FileQuestions:
    """Answerable questions of a SQuAD file; the paragraphs of an article are near each other.

    Raises:
        UserError: no such file, or not of SQuAD's form.
    """
    questions: list[Question] = []
    documents: set[str] = set()
    for article in _read(path, "SQuAD", lambda content: content["data"]):
        try:
            paragraphs = [paragraph["context"] for paragraph in article["paragraphs"]]
            documents.update(paragraphs)
            for paragraph in article["paragraphs"]:
                near = tuple(dict.fromkeys(p for p in paragraphs if p != paragraph["context"]))
                for item in paragraph["qas"]:
                    if not item.get("is_impossible", False):
                        answers = [answer["text"] for answer in item["answers"]]
                        questions.append(Question(item["question"], answers, (paragraph["context"],), near))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not a SQuAD file: an article has no {error}") from error
    return _questions(path, "SQuAD", "squad", documents, questions)


def read_hotpotqa(path: Path) -> FileQuestions:
    """Questions of a HotpotQA file in its distractor setting: ten paragraphs come with each.

    The reference always shows all ten. Here the eight that hold no part of the answer are left out where a length has
    no room for them.

    Raises:
        UserError: no such file, or not of HotpotQA's form.
    """
    questions: list[Question] = []
    documents: set[str] = set()
    for item in _read(path, "HotpotQA", lambda content: [*content]):
        try:
            paragraphs = {title: f"{title}\n{''.join(sentences)}" for title, sentences in item["context"]}
            facts = {title for title, _ in item["supporting_facts"]}
            gold = tuple(text for title, text in paragraphs.items() if title in facts)
            near = tuple(text for title, text in paragraphs.items() if title not in facts)
            questions.append(Question(item["question"], [item["answer"]], gold, near))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a HotpotQA file: a question has no {error}") from error
        documents.update(paragraphs.values())
    return _questions(path, "HotpotQA", "hotpotqa", documents, questions)


def _read(path: Path, name: str, items: Callable[[Any], list[Any]]) -> list[Any]:
    try:
        return items(read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a {name} file (JSON): {error}") from error


def _questions(path: Path, name: str, source: str, documents: set[str], questions: list[Question]) -> FileQuestions:
    if not questions:
        raise UserError(f"{path} has no questions with an answer: give a {name} file")
    label = f"{name} ({path.name}, {len(questions)} questions, {digest(path.read_bytes())})"
    return FileQuestions(label, is_reference(source, path), sorted(documents), questions)
