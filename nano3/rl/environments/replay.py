"""Tool environments whose state follows from the calls alone: it is made anew for each step, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nano3.rl.environments.base import Message, Rollout, tool_results
from nano3.rl.environments.tools import call

MOST_CALLS = 50
"""In one rollout; further ones are refused."""


class State(Protocol):
    """What calls change."""

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The tools by name."""
        ...

    def contents(self) -> Any:
        """JSON values that say all of it."""
        ...


def play(state: State, rollout: Rollout) -> list[str]:
    """Make all calls of a rollout, in order; the result of each."""
    functions = state.functions()
    results = []
    for number, (name, arguments) in enumerate(rollout.calls):
        refused = number >= MOST_CALLS
        results.append(f"Error: more than {MOST_CALLS} calls" if refused else call(functions, name, arguments))
    return results


def answer_calls(state: State, rollout: Rollout) -> Sequence[Message]:
    """Results of the calls in the rollout's last message; empty where it makes none."""
    last = rollout.messages[-1] if rollout.messages else {}
    calls = last.get("tool_calls") or ()
    if not calls:
        return []
    return tool_results(last, play(state, rollout)[-len(calls) :])


def final_contents(state: State, rollout: Rollout) -> Any:
    """The state after all calls of a rollout."""
    play(state, rollout)
    return state.contents()
