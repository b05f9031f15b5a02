"""The contract of reinforcement-learning environments: tasks, a pure `verify`, and `step` for further turns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nano3.config.errors import UserError

Message = Mapping[str, Any]
"""In OpenAI's form: role, content, and an assistant's reasoning_content and tool_calls."""
DECIMALS = 6


class EnvironmentFaultError(Exception):
    """The environment failed, not the model: a judge does not answer, a program cannot be started. The rollout has no
    reward; its group is dropped and counted by `kind`."""

    def __init__(self, kind: str, message: str) -> None:
        """`kind`: in one word or two, the same for all faults of a kind."""
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Task:
    """One prompt with what its answers are measured by."""

    id: str
    """Unique in its environment, and the same from run to run."""
    messages: tuple[Message, ...]
    """The prompt."""
    truth: Any = None
    """What `verify` needs to know, as JSON values."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that may be called, in OpenAI's form."""


@dataclass(frozen=True)
class Rollout:
    """What came after a task's prompt: the model's messages, results of tools, a user's further turns."""

    messages: tuple[Message, ...] = ()
    truncated: bool = False
    """The last message was cut off by its limit."""
    token_ids: Sequence[int] | np.ndarray = field(default=(), compare=False, repr=False)
    """All tokens after the prompt; empty where the messages came without."""

    @classmethod
    def of_text(cls, text: str) -> Rollout:
        """One answer of the model, without reasoning and calls."""
        return cls(({"role": "assistant", "content": text},))

    @property
    def answer(self) -> str:
        """Content of the model's last message; empty where there is none."""
        if not self.messages or self.messages[-1].get("role") != "assistant":
            return ""
        return self.messages[-1].get("content") or ""

    @property
    def calls(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Name and arguments of all calls of tools in order; None for arguments that are no JSON object."""
        found = []
        for message in self.messages:
            for call in message.get("tool_calls") or ():
                function = call.get("function", call)
                found.append((str(function.get("name")), _arguments(function.get("arguments"))))
        return found


@dataclass(frozen=True)
class Reward:
    """What a rollout is worth."""

    value: float
    """Rounded to 6 decimals: so rewards that only differ by how they were added up are equal."""
    passed: bool | None = None
    """Whether the task counts as solved, in pass rates; None: where the value is 1 or more."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of, for people."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a reward is {self.value}; it must be a finite number")
        value = round(float(self.value), DECIMALS)
        object.__setattr__(self, "value", value)
        # Plain bools: a comparison of arrays gives NumPy's, which JSON does not know.
        object.__setattr__(self, "passed", value >= 1 if self.passed is None else bool(self.passed))


NOTHING = Reward(0.0)


def all_or_nothing(right: bool, **parts: Any) -> Reward:
    """1 or 0."""
    return Reward(float(right), right, parts)


@runtime_checkable
class Environment(Protocol):
    """Tasks and the measure of their answers; may be used from several threads."""

    @property
    def name(self) -> str:
        """The domain in reports and in the curriculum."""
        ...

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the same order each time."""
        ...

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """The reward of a finished rollout: of these two alone, so that saved rollouts can be measured again.

        Raises:
            EnvironmentFaultError: nothing can be said of this rollout.
        """
        ...


@runtime_checkable
class MultiTurn(Environment, Protocol):
    """An environment that answers the model."""

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """The messages that follow the rollout's last one, which is the model's: results of the tools that it called,
        or a user's next turn. Empty: the rollout is over. Depends on its arguments alone.

        Raises:
            EnvironmentFaultError: it cannot answer.
        """
        ...


def tool_results(message: Message, results: Sequence[str]) -> list[Message]:
    """Messages with the results of an assistant message's calls, in their order."""
    calls = message.get("tool_calls") or ()
    return [
        {"role": "tool", "tool_call_id": call.get("id", ""), "content": result}
        for call, result in zip(calls, results, strict=True)
    ]


def user(text: str) -> tuple[Message, ...]:
    """A prompt of one user message."""
    return ({"role": "user", "content": text},)


def check_ids(tasks: Sequence[Task], name: str) -> list[Task]:
    """The tasks, once it is sure that no two have one id and that there is one.

    Raises:
        UserError: otherwise.
    """
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise UserError(f"environment {name}: two tasks have the id {task.id!r}; give each its own")
        seen.add(task.id)
    if not tasks:
        raise UserError(f"environment {name}: there are no tasks")
    return list(tasks)


def _arguments(arguments: Any) -> dict[str, Any] | None:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    return dict(arguments) if isinstance(arguments, Mapping) else {} if arguments is None else None
