"""What a server's reply says beside its content: the error's text, whether and when to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nano3.reading import parse_json

LONGEST_WAIT = 60.0
"""Seconds between two tries at the most."""
PASSING = (408, 409, 425, 429)
"""Refusals that another try may not meet; 5xx are of that kind too."""


def is_passing(status: int) -> bool:
    """Whether another try may meet another answer."""
    return status >= 500 or status in PASSING


def pause(attempt: int, asked: float, first: float = 1.0, longest: float = LONGEST_WAIT) -> float:
    """Seconds to wait after try `attempt` (from 0) failed: `first`, doubled each time, or longer where asked to."""
    return min(longest, max(first * 2.0 ** min(attempt, 64), asked))


def seconds_of(retry_after: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 where it is neither or past."""
    text = (retry_after or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = _seconds_until(text)
    return seconds if 0.0 < seconds < float("inf") else 0.0


def _seconds_until(date: str) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return 0.0
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def error_text(body: bytes) -> str:
    """The message in the body of an error answer of a server, on one line."""
    try:
        return error_message(parse_json(body))
    except ValueError:
        return _one_line(body.decode(errors="replace"))


def error_message(body: Any) -> str:
    """The same of a body that was read; servers differ in where they put it."""
    error = body.get("error") or body.get("detail") or body if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        error = error.get("message") or error
    return _one_line(str(error or ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def listed_models(body: Any) -> dict[str, dict[str, Any]]:
    """Name -> what /v1/models tells of it; empty where it lists none or answers in another form."""
    try:
        return {str(row["id"]): dict(row) for row in body["data"]}
    except (LookupError, TypeError, ValueError):
        return {}
