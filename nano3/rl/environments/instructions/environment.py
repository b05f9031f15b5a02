"""Instruction following: answers that rules of the IFEval and IFBench kind can check."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.installation import install_command
from nano3.rl.environments.base import NOTHING, Reward, Rollout, Task, check_ids
from nano3.rl.environments.instructions.rules import RULES, follows
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.rows import Row, column, task_of

LANGUAGE = "language:response_language"
LONGEST = 100_000
"""Characters of an answer that is looked at."""


class InstructionFollowing:
    """1 where the answer follows all of the task's rules, else 0; or the share of them.

    Columns: a prompt, `instruction_id_list` (names of rules) and `kwargs` (arguments of each), as in IFEval's data set.
    """

    name = "instruction_following"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        partial: bool = False,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: lists of words under one to three rules, made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.
            partial: reward the share of rules that are followed.

        Raises:
            UserError: a row without rules, with an unknown one, or with arguments that it does not take.
        """
        found = given_or_made(rows, _made, n, seed, split, self.name, lambda row: row["prompt"])
        name = f"environment {self.name}"
        self._tasks = check_ids([_task(row, f"{name}, row {i + 1}") for i, row in enumerate(found)], self.name)
        self._partial = partial
        if any(LANGUAGE in rules for rules, _ in (task.truth for task in self._tasks)) and not _has_langdetect():
            raise UserError(f"{name}: {LANGUAGE} needs langdetect: {install_command('rl')}")

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By all rules together."""
        if len(rollout.answer) > LONGEST:
            return NOTHING
        rules, arguments = task.truth
        kept = [follows(rollout.answer, rule, given) for rule, given in zip(rules, arguments, strict=True)]
        value = sum(kept) / len(kept) if self._partial else float(all(kept))
        return Reward(value, all(kept), {"followed": [rule for rule, held in zip(rules, kept, strict=True) if held]})


def _has_langdetect() -> bool:
    return importlib.util.find_spec("langdetect") is not None


def _task(row: Row, where: str) -> Task:
    rules = column(row, "instruction_id_list", "instructions", where=where)
    arguments = column(row, "kwargs", where=where)
    if not rules or len(rules) != len(arguments):
        raise UserError(
            f"{where}: {len(rules)} rules with arguments of {len(arguments)}; give at least one, each with its own"
        )
    given = [{k: v for k, v in (entry or {}).items() if v is not None} for entry in arguments]
    for rule, entry in zip(rules, given, strict=True):
        _check(rule, entry, where)
    return task_of(row, [list(rules), given], where)


def _check(rule: str, arguments: Mapping[str, Any], where: str) -> None:
    if rule not in RULES:
        raise UserError(f"{where}: no rule {rule}; there are {', '.join(sorted(RULES))}")
    try:
        inspect.signature(RULES[rule]).bind("", **arguments)
    except TypeError as error:
        raise UserError(f"{where}: rule {rule}: {error}") from error


def _made(rng: random.Random) -> Iterator[Row]:
    for i in itertools.count():
        count, word = rng.randint(3, 7), rng.choice(["tree", "fish", "moon", "corn", "star", "rain"])
        options: list[tuple[str, str, dict[str, Any]]] = [
            (
                "length_constraints:number_words",
                f"Use exactly {count} words.",
                {"num_words": count, "relation": "exactly"},
            ),
            ("change_case:english_capital", "Use capital letters only.", {}),
            ("startend:start_checker", f"Begin with the word {word}.", {"start_phrase": word}),
            (
                "format:separator",
                f"Give {count} items with commas between them.",
                {"separator": ",", "num_items": count},
            ),
            ("words:no_repeats", "Use no word twice.", {}),
            ("words:alphabetical", "Put the words in the order of the alphabet.", {}),
        ]
        chosen = rng.sample(options, 1 + i % 3)
        prompt = " ".join(["Write a list of words.", *(text for _, text, _ in chosen)])
        rules = {"instruction_id_list": [name for name, _, _ in chosen], "kwargs": [given for _, _, given in chosen]}
        yield {"prompt": prompt, **rules}
