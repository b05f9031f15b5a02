"""Reward functions and environment classes that were written for TRL, as environments here.

A reward function is `def reward(completions, **columns) -> list[float]`
(https://huggingface.co/docs/trl/main/en/rewards), also `async def`. An environment is a class with `reset`, whose other
public methods are the tools (https://huggingface.co/docs/trl/main/en/openenv). There is no trainer here, so functions
that need its `trainer_state` are refused.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.environments.base import EnvironmentFaultError, Message, Reward, Rollout, Task, check_ids
from nano3.rl.environments.replay import answer_calls, play
from nano3.rl.environments.rows import Row, id_of, prompt_of, read_rows, tools_of
from nano3.rl.environments.tools import public_methods, tool_of

RewardFunction = Callable[..., Any]
SCALAR = "prompt"
GIVEN = ("prompts", "completions", "completion_ids", "log_metric", "log_extra")


class RewardFunctionEnvironment:
    """Tasks of rows, rewarded by functions; the rewards of several are added up.

    A function gets `prompts`, `completions` (texts where the row's prompt is text, else lists of messages),
    `completion_ids` and each column of the row, all as lists of one; the text of a completion holds the thinking part
    in <think> and </think>. What it reports by `log_metric` and `log_extra` is among the reward's parts. None from it
    counts nothing.
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
            UserError: a row without a prompt, or a function that needs what no row has.
        """
        self._functions = [reward] if callable(reward) else list(reward)
        self.name = name or getattr(self._functions[0], "__name__", "reward")
        self._pass_value = pass_value
        found = read_rows(rows)
        where = f"environment {self.name}"
        self._tasks = [
            Task(id_of(row), prompt_of(row, at := f"{where}, row {i + 1}"), dict(row), tools_of(row, at))
            for i, row in enumerate(found)
        ]
        check_ids(self._tasks, self.name)
        for function in self._functions:
            _check_parameters(function, {key for row in found for key in row}, where)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """The sum of the functions' rewards.

        Raises:
            EnvironmentFaultError: a function fails, or does not give one number.
        """
        parts: dict[str, Any] = {}
        rewards: dict[str, float] = {}
        given = _given(task, rollout, parts)
        for function in self._functions:
            value = _one(function, given)
            if value is not None:
                rewards[_name(function)] = value
        total = sum(rewards.values())
        return Reward(total, total >= self._pass_value, parts | rewards)


def as_written(message: Message) -> str:
    """Content of an assistant message with the thinking part before it, in its tags.

    An answer without words after its thinking is taken as one that did not close it.
    """
    thinking, content = message.get("reasoning_content") or "", message.get("content") or ""
    if not thinking:
        return content
    closed = content or message.get("tool_calls")
    return f"<think>\n{thinking}\n</think>\n{content}" if closed else f"<think>\n{thinking}"


def _given(task: Task, rollout: Rollout, logged: dict[str, Any]) -> dict[str, Any]:
    """What TRL's trainer gives to a reward function, for one rollout; `logged` takes what the function reports."""
    written = [
        {**message, "content": as_written(message)} if message["role"] == "assistant" else dict(message)
        for message in rollout.messages
    ]
    as_text = isinstance(task.truth.get(SCALAR), str) and len(written) < 2
    text = written[0]["content"] if written else ""
    columns = {key: [value] for key, value in task.truth.items() if key not in (SCALAR, "completion")}
    return columns | {
        "prompts": [task.truth[SCALAR] if as_text else list(task.messages)],
        "completions": [text if as_text else written],
        "completion_ids": [[int(token) for token in rollout.token_ids]],
        "log_metric": lambda name, value: logged.__setitem__(name, float(value)),
        "log_extra": lambda column, values: logged.__setitem__(column, str(values[0])),
    }


def _one(function: RewardFunction, given: Mapping[str, Any]) -> float | None:
    taken = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        given = {key: value for key, value in given.items() if key in taken}
    name = _name(function)
    try:
        found = function(**given)
        [value] = asyncio.run(found) if inspect.iscoroutine(found) else found
        return None if value is None else float(value)
    except Exception as error:
        raise EnvironmentFaultError(
            name, f"the reward function {name} fails: {type(error).__name__}: {error}"
        ) from error


def _check_parameters(function: RewardFunction, columns: Collection[str], where: str) -> None:
    known = {*GIVEN, *columns}
    for name, parameter in inspect.signature(function).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL,
        )  # fmt: skip
        if needed and name not in known:
            raise UserError(
                f"{where}: the reward function {_name(function)} needs {name}; there are {', '.join(sorted(known))}"
            )


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


class _State:
    """An environment of TRL's form, made and reset for one rollout."""

    def __init__(self, factory: Callable[[], Any], row: Mapping[str, Any]) -> None:
        self.instance = factory()
        self.observation = self.instance.reset(**row)

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        methods = public_methods(self.instance, without=("reset", "close"))
        return {name: _answering(method) for name, method in methods.items()}

    def contents(self) -> Any:
        return None


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its errors as ValueErrors, which the model is shown: as in TRL, whatever a call raises."""

    @functools.wraps(method)
    def answering(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (ValueError, ArithmeticError, EnvironmentFaultError):
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return answering


class ToolClassEnvironment:
    """Each rollout has an object of the class: `reset(**row)` makes it ready, and what that returns is added to the
    prompt; its public methods are the tools, whose errors the model is shown. The reward is `reward(instance)`, one of
    TRL's reward functions, which gets `environments` too, or the object's attribute `reward`.

    What an object answers has to follow from its row and the calls alone, since it is made anew at each step.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        rows: str | Path | Iterable[Row],
        reward: Callable[..., Any] | None = None,
        name: str = "",
    ) -> None:
        """
        Args:
            factory: the class.
            rows: a jsonl file or its rows.
            reward: of an object after a rollout, or a reward function; None: the object's attribute of that name.
            name: empty: that of the class.

        Raises:
            UserError: the class has no `reset`, or no tools.
        """
        self.name = name or getattr(factory, "__name__", "environment")
        self._factory, self._reward = factory, reward or _own_reward
        found, where = read_rows(rows), f"environment {self.name}"
        given = {*GIVEN, "environments"}
        self._is_trl = bool(given & inspect.signature(self._reward).parameters.keys())
        if self._is_trl:
            _check_parameters(self._reward, given | {key for row in found for key in row}, where)
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
        if self._is_trl:
            parts: dict[str, Any] = {}
            value = _one(self._reward, {**_given(task, rollout, parts), "environments": [state.instance]})
            return Reward(value or 0.0, parts=parts)
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
