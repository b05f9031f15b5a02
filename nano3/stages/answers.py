"""Held-out tasks of nano3's own generators, answered as a server would: greedily, with tools carried out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import read_conversation
from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.maker import task_of
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.data.chat.rows import Rows
from nano3.data.chat.sets import set_sources
from nano3.data.tasks.catalogue import find_generator, find_tasks, is_tasks
from nano3.data.tasks.task import Task
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.model.hf.folder import load

MOST_STEPS = 8
"""Answers of one task, each but the last with tool calls."""
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


def answer(
    engine: Engine,
    encoder: ChatEncoder,
    tasks: Sequence[Task],
    max_tokens: int,
    *,
    thinking: bool | ThinkingBudget = True,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[dict[str, Any]]]:
    """All messages that follow each task's prompt, tool results among them.

    Args:
        max_tokens: most tokens of each answer, reasoning included.
        thinking: with reasoning, without it, or with so much of it.
        temperature: 0: greedy.
        seed: of the samples; task i takes seed + i.
    """
    budget = thinking if isinstance(thinking, ThinkingBudget) else None
    variables = {"enable_thinking": False} if thinking is False else {}
    replies: list[list[dict[str, Any]]] = [[] for _ in tasks]
    open_tasks = list(range(len(tasks)))
    for step in range(MOST_STEPS):
        prompts = {
            i: encoder.encode([*tasks[i].prompt, *replies[i]], tasks[i].tools or None, **variables) for i in open_tasks
        }
        prompts = {i: prompt for i, prompt in prompts.items() if len(prompt.ids) + max_tokens <= engine.max_context}
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, thinking=budget)
        requests = [
            Request(f"{i}-{step}", prompt.ids, replace(sampling, seed=seed + i)) for i, prompt in prompts.items()
        ]
        open_tasks = []
        for (i, prompt), (output,) in zip(prompts.items(), run(engine, requests), strict=True):
            cut_off = output.finish == "length"
            replies[i].append(_message(output.text, tasks[i], prompt, cut_off))
            if cut_off:
                continue
            if results := find_generator(tasks[i].generator).respond(tasks[i].truth, replies[i]):
                replies[i] += results
                open_tasks.append(i)
        if not open_tasks:
            break
    return replies


def _message(text: str, task: Task, prompt: ChatPrompt, cut_off: bool) -> dict[str, Any]:
    """An output as the assistant's message."""
    parsed = parse_output(
        text, task.tools, cut_off=cut_off, thinking_open=prompt.thinking_open, parse_tools=bool(task.tools)
    )
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in parsed.tool_calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content, "reasoning_content": parsed.reasoning}
    return message | ({"tool_calls": calls} if calls else {})


def _longest(cfg: SftConfig) -> int:
    return max(1024, cfg.data.pack_length) + cfg.answers.max_tokens
