"""Questions to environments, several at once and each with a limit of time: environments may be anybody's code."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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


class Asker:
    """Asks environments in threads, while whoever asks goes on with other work.

    A question that takes longer than its limit is given up: its thread goes on, for threads cannot be killed, but what
    it says is not heard and another thread takes its place.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        """
        Args:
            workers: threads that are waited for at once.
            seconds: for one answer.
        """
        self._workers, self._seconds = workers, seconds
        self._queue: collections.deque[tuple[int, Callable[[], Any]]] = collections.deque()
        self._ends: dict[int, float] = {}
        """Of the questions that are being answered, by number."""
        self._whose: dict[int, Any] = {}
        self._given: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._asked = 0

    @property
    def busy(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._whose)

    def ask(self, key: Any, question: Callable[[], Any]) -> None:
        """Have a question answered: a call of an environment, which changes nothing of the caller's."""
        self._whose[self._asked] = key
        self._queue.append((self._asked, question))
        self._asked += 1
        self._start()

    def answers(self, wait: bool) -> Iterator[tuple[Any, Answer]]:
        """Key and answer of the questions that were answered since, as they came.

        Args:
            wait: until there is one, where one is to come.
        """
        while self._ends:
            found = self._next(wait)
            if found is None:
                return
            number, answer = found
            if self._ends.pop(number, None) is not None:
                wait = False
                self._start()
                yield self._whose.pop(number), answer

    def _next(self, wait: bool) -> tuple[int, Answer] | None:
        end = min(self._ends.values())
        left = end - time.monotonic()
        try:
            return self._given.get(timeout=max(0.0, left)) if wait else self._given.get_nowait()
        except queue.Empty:
            if not wait and left > 0:
                return None
            number = min(self._ends, key=lambda number: self._ends[number])
            return number, Answer(fault=TIME, message=f"no answer within {self._seconds:g} seconds")

    def _start(self) -> None:
        while self._queue and len(self._ends) < self._workers:
            number, question = self._queue.popleft()
            self._ends[number] = time.monotonic() + self._seconds
            _answer(number, question, self._given)


def ask_all(questions: Sequence[Callable[[], Any]], workers: int, seconds: float) -> list[Answer]:
    """The answers of all questions, in order; see Asker."""
    asker, answers = Asker(workers, seconds), [Answer()] * len(questions)
    for number, question in enumerate(questions):
        asker.ask(number, question)
    while asker.busy:
        for number, answer in asker.answers(wait=True):
            answers[number] = answer
    return answers


def _answer(number: int, question: Callable[[], Any], given: queue.SimpleQueue[tuple[int, Answer]]) -> None:
    def answer() -> None:
        try:
            given.put((number, Answer(question())))
        except EnvironmentFaultError as error:
            given.put((number, Answer(fault=error.kind, message=str(error))))
        except BaseException as error:  # sys.exit in a thread ends the thread alone, and nobody would hear of it.
            given.put((number, Answer(fault=type(error).__name__, message=str(error))))

    # A daemon: one that hangs does not keep the process from ending.
    threading.Thread(target=answer, name=f"nano3-environment-{number}", daemon=True).start()
