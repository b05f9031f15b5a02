"""Reward functions and environment classes that were written for TRL, as environments here.

A reward function is `def reward(completions, **columns) -> list[float]`
(https://huggingface.co/docs/trl/main/en/rewards). An environment is a class with `reset`, whose other public methods
are the tools (https://huggingface.co/docs/trl/main/en/openenv).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.environments.base import EnvironmentFaultError, Message, Reward, Rollout, Task, check_ids
from nano3.rl.environments.replay import answer_calls, play
from nano3.rl.environments.rows import Row, id_of, prompt_of, read_rows, tools_of
from nano3.rl.environments.tools import public_methods, tool_of

RewardFunction = Callable[..., Sequence[float | None]]
SCALAR = "prompt"


class RewardFunctionEnvironment:
    """Tasks of rows, rewarded by functions; the rewards of several are added up.

    A function gets `prompts`, `completions` (texts where the row's prompt is text, else lists of messages) and each
    column of the row, all as lists of one. None from it counts nothing.
    """

    def __init__(
        self,
        reward: RewardFunction | Sequence[RewardFunction],
        rows: str | Path | Iterable[Row],
        name: str = "",
        pass_value: float = 1.0,
    ) -> None:
        """
        Args:
            reward: one function, or some.
            rows: a jsonl file or its rows.
            name: of the environment; empty: that of the first function.
            pass_value: least reward that counts as solved.

        Raises:
            UserError: a row without a prompt.
        """
        self._functions = [reward] if callable(reward) else list(reward)
        self.name = name or getattr(self._functions[0], "__name__", "reward")
        self._pass_value = pass_value
        found = read_rows(rows)
        where = f"environment {self.name}"
        self._tasks = [
            Task(id_of(row), prompt_of(row, f"{where}, row {i + 1}"), dict(row), tools_of(row))
            for i, row in enumerate(found)
        ]
        check_ids(self._tasks, self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """The sum of the functions' rewards.

        Raises:
            EnvironmentFaultError: a function fails, or does not give one number.
        """
        as_text = isinstance(task.truth.get(SCALAR), str)
        columns = {key: [value] for key, value in task.truth.items() if key not in (SCALAR, "completion")}
        prompts = [task.truth[SCALAR] if as_text else list(task.messages)]
        completions = [rollout.answer if as_text else [dict(message) for message in rollout.messages]]
        parts: dict[str, float] = {}
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            value = _one(function, name, prompts=prompts, completions=completions, **columns)
            if value is not None:
                parts[name] = value
        total = sum(parts.values())
        return Reward(total, total >= self._pass_value, parts)


def _one(function: RewardFunction, name: str, **given: Any) -> float | None:
    taken = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        given = {key: value for key, value in given.items() if key in taken}
    try:
        [value] = function(**given)
        return None if value is None else float(value)
    except Exception as error:
        raise EnvironmentFaultError(
            name, f"the reward function {name} fails: {type(error).__name__}: {error}"
        ) from error


class _State:
    """An environment of TRL's form, made and reset for one rollout."""

    def __init__(self, factory: Callable[[], Any], row: Mapping[str, Any]) -> None:
        self.instance = factory()
        self.observation = self.instance.reset(**row)

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        return public_methods(self.instance, without=("reset", "close"))

    def contents(self) -> Any:
        return None


class ToolClassEnvironment:
    """Each rollout has an object of the class: `reset(**row)` makes it ready, and what that returns is added to the
    prompt; its public methods are the tools. The reward is `reward(instance)`, or the object's attribute `reward`.

    What an object answers has to follow from its row and the calls alone, since it is made anew at each step.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        rows: str | Path | Iterable[Row],
        reward: Callable[[Any], float] | None = None,
        name: str = "",
    ) -> None:
        """
        Args:
            factory: the class.
            rows: a jsonl file or its rows.
            reward: of an object after a rollout; None: its attribute of that name.
            name: empty: that of the class.

        Raises:
            UserError: the class has no `reset`, or no tools.
        """
        self.name = name or getattr(factory, "__name__", "environment")
        self._factory, self._reward = factory, reward or _own_reward
        found, where = read_rows(rows), f"environment {self.name}"
        if not callable(getattr(factory, "reset", None)):
            raise UserError(f"{where}: the class has no reset(**row)")
        self._tasks = check_ids([self._task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Results of the tools that were called."""
        return answer_calls(self._started(task.truth), rollout)

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By the object, after all calls of the rollout."""
        state = self._started(task.truth)
        play(state, rollout)
        try:
            return Reward(float(self._reward(state.instance)))
        except Exception as error:
            raise EnvironmentFaultError(self.name, f"its reward fails: {type(error).__name__}: {error}") from error

    def _started(self, row: Mapping[str, Any]) -> _State:
        try:
            return _State(self._factory, row)
        except Exception as error:
            raise EnvironmentFaultError(self.name, f"reset fails: {type(error).__name__}: {error}") from error

    def _task(self, row: Row, where: str) -> Task:
        state = self._started(row)
        tools = tuple(tool_of(function) for function in state.functions().values())
        if not tools:
            raise UserError(f"{where}: the class has no public method but reset; those are the tools")
        messages = prompt_of(row, where)
        if state.observation:
            last = messages[-1]
            messages = (*messages[:-1], {**last, "content": f"{last['content']}\n\n{state.observation}"})
        return Task(id_of(row), messages, dict(row), tools)


def _own_reward(instance: Any) -> float:
    return instance.reward
