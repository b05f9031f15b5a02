"""Questions on several documents; answers are compared as text or by a judge (report section 3.2)."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.rl.environments.base import NOTHING, Reward, Rollout, Task, all_or_nothing, check_ids, user
from nano3.rl.environments.judge import Judge
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.rows import Row, column, id_of, task_of

LEAST_DOCUMENTS = 5
LONGEST = 20_000
"""Characters of an answer that is looked at."""
PROMPT = """You are shown a question, its reference answer, and an answer to be judged.
Question: {question}
Reference answer: {truth}
Answer: {answer}
Does the answer say the same as the reference answer? Reply with one word, yes or no."""


class LongContextQA:
    """Whether the answer is the reference: the same words, or so says a judge.

    Columns: `question`, `answer` (a string, or a list of those that are right), and `documents`, at least 5; or a whole
    prompt in their place.
    """

    name = "long_context_qa"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        judge_url: str = "",
        judge_model: str = "",
        judge_cache: str | Path | None = None,
        n: int = 100,
        seed: int = 0,
        split: Split | None = None,
        documents: int = 6,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: questions on short documents, made here.
            judge_url: an OpenAI-compatible server; empty: the same words, capitals, articles and punctuation apart.
            judge_model: empty: the first that it lists.
            judge_cache: a file in which its verdicts are kept.
            n, seed, documents: of the tasks made here.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.

        Raises:
            UserError: a row without question, answer or enough documents.
        """
        found = given_or_made(rows, partial(_made, documents=documents), n, seed, split, self.name)
        where = f"environment {self.name}"
        self._tasks = check_ids([_task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)
        self._judge = Judge(judge_url, judge_model, judge_cache) if judge_url else None

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 or 0."""
        answer, truths = rollout.answer.strip(), task.truth["answers"]
        if not answer or len(answer) > LONGEST or rollout.truncated:
            return NOTHING
        if any(normal(answer) == normal(truth) for truth in truths):
            return all_or_nothing(True, by="words")
        if self._judge is None:
            return NOTHING
        verdict = self._judge.ask(PROMPT.format(question=task.truth["question"], truth=truths[0], answer=answer))
        return all_or_nothing(normal(verdict) == "yes", by="judge", verdict=verdict)


def normal(text: str) -> str:
    """Small letters, without articles and punctuation (as SQuAD's scorer)."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _task(row: Row, where: str) -> Task:
    answers: Any = column(row, "answer", "answers", "expected_answer", where=where)
    answers = [answers] if isinstance(answers, str) else [str(answer) for answer in answers]
    question = str(column(row, "question", "prompt", where=where))
    truth = {"question": question, "answers": answers}
    if not answers or not all(normal(answer) for answer in answers):
        raise UserError(f"{where}: an empty answer would be right where nothing is said")
    if row.get("documents") is None:
        return task_of(row, truth, where)
    documents = [str(document) for document in row["documents"]]
    if len(documents) < LEAST_DOCUMENTS:
        raise UserError(f"{where}: {len(documents)} documents; give at least {LEAST_DOCUMENTS}")
    shown = [f"Document {i}:\n{document}" for i, document in enumerate(documents, start=1)]
    text = "\n\n".join([*shown, f"{question}\nAnswer with the words of the documents, and nothing else."])
    return Task(id_of(row), user(text), truth)


def _made(rng: random.Random, documents: int) -> Iterator[Row]:
    places = ["Oslo", "Lima", "Cairo", "Quito", "Delhi", "Perth", "Turin", "Kyoto", "Lagos", "Minsk", "Porto", "Accra"]
    people = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Leo", "Mia"]
    while True:
        chosen = rng.sample(people, max(documents, LEAST_DOCUMENTS))
        homes = {person: rng.choice(places) for person in chosen}
        mother, child = rng.sample(chosen, 2)
        texts = [f"{person} lives in {homes[person]}." for person in chosen]
        texts[chosen.index(child)] += f" The mother of {child} is {mother}."
        question = f"In which city does the mother of {child} live?"
        yield {"question": question, "answer": homes[mother], "documents": texts}
