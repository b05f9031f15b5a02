"""How often and how long one answer is waited for; no request is made here, so that every client counts alike."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from nano3.client.replies import LONGEST_WAIT, pause

FULL = 429
"""Too Many Requests."""


class NoAnswerError(Exception):
    """Every try failed."""

    def __init__(self, reason: str, tries: int, limit: str) -> None:
        """`reason`: of the last failure; `limit`: what ran out, as `in 5 attempts` or `in 900 s`."""
        super().__init__(f"no answer {limit} ({reason})")
        self.reason, self.tries, self.limit = reason, tries, limit


@dataclass(frozen=True)
class Tries:
    """How often and how long an answer is waited for."""

    n: int = 5
    first_wait: float = 1.0
    """Seconds before the second try, doubled before each further one."""
    longest_wait: float = LONGEST_WAIT
    deadline: float = math.inf
    """Seconds for all tries together."""
    patient: bool = False
    """A full server (429) is asked until the deadline, however often."""
    json_only: bool = False
    """An answer that is no JSON was cut, and is asked for again."""


TRIES = Tries()


class Attempts:
    """The tries of one request.

    Attributes:
        n: tries so far, all of which failed.
        failed: those of them that count against the limit.
        reason: of the last one.
        asked: seconds of Retry-After of the last one; 0: none.
        unasked: those of them without a Retry-After.
        began, end: seconds of the monotonic clock: when the first try began, and when the deadline comes.
    """

    def __init__(self, tries: Tries) -> None:
        """None made yet."""
        self._tries = tries
        self.reason, self.asked = "", 0.0
        self.begin()

    def begin(self) -> None:
        """The first try begins now; those before, if there were any, are forgotten."""
        self.n = self.failed = self.unasked = 0
        self.began = time.monotonic()
        self.end = self.began + self._tries.deadline

    def refused(self, status: int, reason: str, asked: float = 0.0) -> None:
        """A try was refused in a way that may pass; `asked`: seconds of its Retry-After."""
        self._note(reason, asked, not (self._tries.patient and status == FULL))

    def broke(self, reason: str) -> None:
        """A try brought no whole answer."""
        self._note(reason, 0.0, True)

    @property
    def is_over(self) -> bool:
        """Whether as many have failed as may."""
        return self.failed >= self._tries.n

    def wait(self) -> float:
        """Seconds before the next try.

        Raises:
            NoAnswerError: there is none: as many failed as may, or the deadline comes first.
        """
        if self.is_over:
            raise self.given_up()
        seconds = self.pause()
        if time.monotonic() + seconds >= self.end:
            raise NoAnswerError(self.reason, self.n, f"in {self._tries.deadline:g} s")
        return seconds

    def pause(self) -> float:
        """Seconds before the next try, whatever the limits."""
        return pause(self.n - 1, self.asked, self._tries.first_wait, self._tries.longest_wait)

    def polite_pause(self) -> float:
        """The same where many requests are made at once: what the server asks for is enough, and the wait doubles with
        tries alone for which it asked nothing."""
        first, longest = self._tries.first_wait, self._tries.longest_wait
        return min(longest, self.asked) if self.asked else pause(self.unasked - 1, 0.0, first, longest)

    def given_up(self) -> NoAnswerError:
        """The error of a request that is tried no further."""
        return NoAnswerError(self.reason, self.n, f"in {self.n} attempts")

    def _note(self, reason: str, asked: float, counts: bool) -> None:
        self.n += 1
        self.failed += counts
        self.unasked += not asked
        self.reason, self.asked = reason, asked
