"""Questions to environments, several at once and each with a limit of time: environments may be anybody's code."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nano3.rl.environments.base import EnvironmentFaultError

TIME = "time"
"""Kind of the fault of an environment that did not answer in time."""


class Answer(NamedTuple):
    """A value, or the fault in place of it."""

    value: Any = None
    fault: str = ""
    """Kind; those that an environment did not foresee by the name of their type."""
    message: str = ""


def ask_all(questions: Sequence[Callable[[], Any]], workers: int, seconds: float) -> list[Answer]:
    """The answers, in order.

    A question that takes longer is given up: its thread goes on, for threads cannot be killed, but what it says is not
    heard and another thread takes its place.

    Args:
        questions: calls of environments; they change nothing of the caller's.
        workers: threads that are waited for at once.
        seconds: for one answer.
    """
    answers = [Answer()] * len(questions)
    ends: dict[int, float] = {}
    given: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    following = 0
    while following < len(questions) or ends:
        while following < len(questions) and len(ends) < workers:
            ends[following] = time.monotonic() + seconds
            _start(following, questions[following], given)
            following += 1
        try:
            number, answer = given.get(timeout=max(0.0, min(ends.values()) - time.monotonic()))
        except queue.Empty:
            number = min(ends, key=lambda number: ends[number])
            answer = Answer(fault=TIME, message=f"no answer within {seconds:g} seconds")
        if ends.pop(number, None) is not None:
            answers[number] = answer
    return answers


def _start(number: int, question: Callable[[], Any], given: queue.SimpleQueue[tuple[int, Answer]]) -> None:
    def answer() -> None:
        try:
            given.put((number, Answer(question())))
        except EnvironmentFaultError as error:
            given.put((number, Answer(fault=error.kind, message=str(error))))
        except Exception as error:
            given.put((number, Answer(fault=type(error).__name__, message=str(error))))

    # A daemon: one that hangs does not keep the process from ending.
    threading.Thread(target=answer, name=f"nano3-environment-{number}", daemon=True).start()
