"""Prompts to answer, without a measure of their own: a judge compares the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat.messages import normal_messages
from nano3.data.chat.records import Record, read_records
from nano3.data.preferences.layouts import RowError, turns_of
from nano3.data.tasks.catalogue import find_tasks
from nano3.data.tasks.source import Split
from nano3.data.tasks.task import content_hash
from nano3.data.texts.skipped import Skipped
from nano3.rl.environments.base import NOTHING, Reward, Rollout, Task
from nano3.rl.environments.rows import find_column, prompt_of, tools_of

COLUMNS = ("messages", "context", "prompt", "question")
"""Of a row, the first that it has: a conversation or a text. The answers that conversations under `messages` end with
are left out."""


class Prompts:
    """Prompts of one source, each answered in one turn. Rewards come from a judge, once all answers are there."""

    def __init__(
        self,
        source: str = "",
        rows: str = "",
        n: int = 400,
        seed: int = 0,
        split: Split | None = None,
    ) -> None:
        """
        Args:
            source: `generate:NAME`, with options behind a `?`.
            rows: a file, folder or data set of the hub, in place of a source.
            n, seed, split: of the generated prompts.

        Raises:
            UserError: no such source, a row without a prompt, or prompts that offer tools.
            FileNotFoundError: no such file.
        """
        self.name = source or rows
        self._tasks = _read(rows) if rows else _made(source, n, seed, split or "train")

    def tasks(self) -> Sequence[Task]:
        """All, no prompt twice."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """Nothing: the judge gives the reward."""
        return NOTHING


def _made(source: str, n: int, seed: int, split: Split) -> list[Task]:
    found = [Task(task.id, tuple(task.prompt), task.truth, tuple(task.tools))
             for task in find_tasks(source, seed, split).distinct(n)]  # fmt: skip
    if any(task.tools for task in found):
        raise UserError(f"{source}: its tasks take several turns with tools; a judge compares answers of one turn")
    return found


def _read(spec: str) -> list[Task]:
    found: dict[str, Task] = {}
    for record in read_records(spec, Skipped()):
        task = _task(record)
        found.setdefault(task.id, task)
    if not found:
        raise UserError(f"{spec} holds no prompts")
    return list(found.values())


def _task(record: Record) -> Task:
    if record.value is None:
        raise UserError(f"{record.name}: {record.problem}")
    if tools_of(record.value, record.name):
        raise UserError(f"{record.name}: it offers tools; a judge compares answers of one turn without them")
    try:
        messages = _prompt(record.value, record.name)
        normal_messages(messages)
    except (RowError, UserError) as error:
        raise UserError(str(error) if record.name in str(error) else f"{record.name}: {error}") from error
    if messages[-1]["role"] != "user":
        raise UserError(f"{record.name}: the conversation does not end with a user's message, which is to be answered")
    # Of the prompt alone: rows that differ in their answers are one prompt.
    identity = content_hash(json.dumps(messages, sort_keys=True, default=str))
    return Task(f"prompt-{identity}", tuple(messages), find_column(record.value, "truth", "answer"))


def _prompt(row: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    """The conversation up to the answer that is asked for."""
    column = next((name for name in COLUMNS if row.get(name)), None)
    if column is None:
        return prompt_of(row, where)
    if isinstance(row[column], str):
        return turns_of(row[column])
    messages = prompt_of({"prompt": row[column]}, where)
    while column == "messages" and messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    return messages
