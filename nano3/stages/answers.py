"""Held-out tasks of nano3's own generators, answered as a server would: greedily, with tools carried out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import read_conversation
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.maker import task_of
from nano3.data.chat.rows import Rows
from nano3.data.chat.sets import set_sources
from nano3.data.tasks.catalogue import find_generator, find_tasks, is_tasks
from nano3.data.tasks.task import Task
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.eval.tasks.answer import answer
from nano3.model.hf.folder import load

SEQUENCES = 64
"""Tasks that are answered at a time."""


@dataclass
class TaskScore:
    """Tasks of one data set."""

    tasks: int = 0
    solved: float = 0.0
    by_level: dict[int, list[float]] = field(default_factory=dict)
    """Rewards by level of difficulty."""

    def add(self, level: int, reward: float) -> None:
        """Count one task."""
        self.tasks += 1
        self.solved += reward
        self.by_level.setdefault(level, []).append(reward)

    @property
    def rate(self) -> float:
        """Mean reward: the share that is solved."""
        return self.solved / max(1, self.tasks)


def score_answers(cfg: SftConfig, folder: Path, tokenizer: Tokenizer, sets: Mapping[str, Rows]) -> dict[str, TaskScore]:
    """Have the model in `folder` answer held-out tasks of each generated data set; empty where there are none.

    Raises:
        UserError: a task is among those that were trained on.
    """
    tasks = heldout_tasks(cfg)
    check_tasks(tasks, sets)
    asked = [task for listed in tasks.values() for task in listed]
    if not asked:
        return {}
    engine = Engine(load(folder), tokenizer, max_context=_longest(cfg), max_sequences=SEQUENCES)
    replies = answer(engine, ChatEncoder(tokenizer), asked, cfg.answers.max_tokens)
    answered = iter(zip(asked, replies, strict=True))
    scores = {name: TaskScore() for name in tasks}
    for name, listed in tasks.items():
        for task, given in itertools.islice(answered, len(listed)):
            scores[name].add(task.level, find_generator(task.generator).check(task.truth, given))
    return scores


def heldout_tasks(cfg: SftConfig) -> dict[str, list[Task]]:
    """Different held-out tasks of each data set that nano3 makes, shared out among its sources."""
    found: dict[str, list[Task]] = {}
    for name, specs in set_sources(cfg.data).items():
        made = [spec for spec in specs if is_tasks(spec)]
        if made and cfg.answers.tasks:
            each = -(-cfg.answers.tasks // len(made))
            listed = [task for spec in made for task in find_tasks(spec, cfg.data.seed, "heldout").tasks(each)]
            found[name] = list({task.id: task for task in listed}.values())
    return found


def check_tasks(tasks: Mapping[str, Sequence[Task]], sets: Mapping[str, Rows]) -> None:
    """Raise UserError where a task that is asked was trained on."""
    trained = np.unique(np.concatenate([rows.tasks[~rows.heldout] for rows in sets.values()]))
    for name, listed in tasks.items():
        asked = np.array([task_of(read_conversation(task.row(), task.id), whole=True) for task in listed], np.uint64)
        if len(both := np.flatnonzero(np.isin(asked, trained))):
            raise UserError(f"data set {name!r}: the held-out task {listed[both[0]].id} is trained on too")


def _longest(cfg: SftConfig) -> int:
    return max(1024, cfg.data.pack_length) + cfg.answers.max_tokens
