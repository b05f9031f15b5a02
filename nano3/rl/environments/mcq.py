"""Multiple choice with 8 options or more: with fewer, guessing is rewarded too often."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.rl.environments.base import Reward, Rollout, Task, all_or_nothing, check_ids, user
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.rows import GYM, Row, column, id_of, task_of

LEAST = 8
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BOX = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Z])\)?\s*\}?\s*\}")
_PRONOUN = r"\s*\**\s*\(?I\s+[a-z]"
_ANSWER = re.compile(rf"(?i:answer)(?:\s+(?i:is))?(?:\s*:|(?!{_PRONOUN}))\s*\**\s*\(?([A-Z])\b\)?")
_ALONE = re.compile(r"\(?([A-Z])[).]?")


class MultipleChoice:
    """The letter of the right option: in \\boxed{}, after "Answer:", or as the whole answer; the last one counts.

    Columns: `question` (or `prompt`) as text, `options` (or `choices`), and `answer` (or `expected_answer`): a letter,
    an option's text, or an option's number from 0.
    """

    name = "mcq"

    def __init__(
        self, rows: str | Path | Iterable[Row] | None = None, n: int = 200, seed: int = 0, split: Split | None = None
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: questions on facts that stand in the prompt, made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.

        Raises:
            UserError: a row without question or answer, or with less than 8 options.
        """
        found = given_or_made(rows, _made, n, seed, split, self.name)
        self._tasks = check_ids([_task(row, f"environment mcq, row {i + 1}") for i, row in enumerate(found)], self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 for the right letter, else 0."""
        chosen = chosen_letter(rollout.answer, LETTERS[: task.truth["options"]])
        return all_or_nothing(chosen == task.truth["letter"], chosen=chosen)


def chosen_letter(text: str, letters: str = LETTERS) -> str:
    """The letter, of these, that an answer chooses at its end; "" where it chooses none."""
    found = [match for pattern in (_BOX, _ANSWER) for match in pattern.finditer(text) if match[1] in letters]
    if found:
        return max(found, key=lambda match: match.end())[1]
    alone = _ALONE.fullmatch(text.strip())
    return alone[1] if alone and alone[1] in letters else ""


def _task(row: Row, where: str) -> Task:
    given = column(row, "options", "choices", where=where)
    if not isinstance(given, list | tuple):
        raise UserError(f"{where}: options is no list")
    options = [_text(option) for option in given]
    if not LEAST <= len(options) <= len(LETTERS):
        raise UserError(f"{where}: {len(options)} options; give from {LEAST} to {len(LETTERS)}, since guessing is paid")
    letter = _letter(column(row, "answer", "expected_answer", where=where), options, where)
    answer = {"letter": letter, "options": len(options)}
    if row.get(GYM):  # its prompt shows the options already
        return task_of(row, answer, where)
    lines = [f"{LETTERS[i]}) {option}" for i, option in enumerate(options)]
    question = str(column(row, "question", "prompt", where=where))
    ask = "Answer with the letter of the right option, as in: Answer: A"
    prompt = "\n".join([question, *lines, ask])
    return Task(id_of(row), user(prompt), answer)


def _text(option: Any) -> str:
    """NeMo Gym's options are objects of one letter and its text."""
    return str(next(iter(option.values()), "")) if isinstance(option, Mapping) else str(option)


def _letter(answer: Any, options: Sequence[str], where: str) -> str:
    if isinstance(answer, int) and 0 <= answer < len(options):
        return LETTERS[answer]
    if str(answer) in options:
        return LETTERS[options.index(str(answer))]
    if str(answer).strip().upper() in LETTERS[: len(options)] and str(answer).strip():
        return str(answer).strip().upper()
    raise UserError(f"{where}: answer {answer!r} is none of its options, their letters or numbers")


def _made(rng: random.Random) -> Iterator[Row]:
    people = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo"]
    things = ["box", "cup", "hat", "pen", "bag", "key", "map", "coin", "ball", "book", "lamp", "ring"]
    while True:
        owners, owned = rng.sample(people, LEAST), rng.sample(things, LEAST)
        facts = " ".join(f"{person} has the {thing}." for person, thing in zip(owners, owned, strict=True))
        at = rng.randrange(LEAST)
        question = f"{facts} Who has the {owned[at]}?"
        options = sorted(owners)
        yield {"question": question, "options": options, "answer": owners[at]}
