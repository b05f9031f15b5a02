"""Questions about documents among others: `qa_1` and `qa_2` (scripts/data/synthetic/qa.py of the reference)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from nano3.config.errors import UserError
from nano3.eval.ruler import templates
from nano3.eval.ruler.questions import CorpusQuestions, FileQuestions, Question
from nano3.eval.ruler.sample import Draft, Plan, Request


def single_hop(request: Request) -> Plan:
    """The prompt of `qa_1`: the answer is in one document."""
    return _plan(request, request.sources.squad)


def multi_hop(request: Request) -> Plan:
    """The prompt of `qa_2`: the answer takes two documents."""
    return _plan(request, request.sources.hotpotqa)


def _plan(request: Request, questions: FileQuestions | CorpusQuestions) -> Plan:
    return _from_file(request, questions) if isinstance(questions, FileQuestions) else _from_corpus(request, questions)


def _from_file(request: Request, questions: FileQuestions) -> Plan:
    """In documents added to those with the answer; the last one is cut where a length has no room for all of it."""
    question = questions.question(request.index)
    distractors = Distractors(request, questions, question)

    def build(n: int, cut: int = 0) -> Draft:
        documents = [*question.gold, *distractors.first(n)]
        if cut:
            documents.append(" ".join(distractors.first(n + 1)[n].split(" ")[:cut]))
        request.rng("order").shuffle(documents)
        return _draft(documents, question.query, question.answers)

    return Plan(
        build, refine=lambda n: Plan(lambda cut: build(n, cut), most=distractors.first(n + 1)[n].count(" ") or None)
    )


class Distractors:
    """Documents that are not the asked one's: those that came with the question first, then any others.

    The order within each group is random; when all are used they start again.
    """

    def __init__(self, request: Request, questions: FileQuestions, question: Question) -> None:
        self._request, self._questions, self._question = request, questions, question

    @cached_property
    def _documents(self) -> list[str]:
        rng, question = self._request.rng("documents"), self._question
        near = list(question.near)
        rng.shuffle(near)
        taken = {*question.gold, *near}
        far = [document for document in self._questions.documents if document not in taken]
        rng.shuffle(far)
        if not near + far:
            raise UserError(
                f"{self._questions.label}: {self._request.task} needs documents to hide the asked one among"
            )
        return near + far

    def first(self, n: int) -> Sequence[str]:
        """The first `n` documents."""
        if not n:
            return []
        rounds = -(-n // len(self._documents))
        return (self._documents * rounds)[:n]


def _from_corpus(request: Request, questions: CorpusQuestions) -> Plan:
    """In passages of the corpus, the order of which belongs to the question; noise fills the rest."""

    def build(n: int, filler: int = 0) -> Draft:
        documents, query, answers = questions.ask(request.index, request.seed, n)
        if filler:
            documents = [*documents, " ".join(templates.FILLER[i % len(templates.FILLER)] for i in range(filler))]
        return _draft(documents, query, answers)

    return Plan(
        build,
        least=questions.least,
        most=questions.n_passages,
        refine=lambda n: Plan(lambda filler: build(n, filler)),
    )


def _draft(documents: Sequence[str], query: str, answers: Sequence[str]) -> Draft:
    context = "\n\n".join(
        templates.QA_DOCUMENT.format(number=number, document=document) for number, document in enumerate(documents, 1)
    )
    return Draft(templates.QA.format(context=context, query=query), templates.QA_PREFIX, answers)
