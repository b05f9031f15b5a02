"""What a server's reply says beside its content: the error's text, whether and when to ask again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nano3.reading import parse_json

LONGEST_WAIT = 60.0
"""Seconds between two tries at the most."""
_FILTERED = re.compile(  # Azure, OpenAI, OpenRouter, Anthropic, DashScope, DeepSeek, gateways
    r"content[ _-]?(?:filter|policy|management)|moderation|flagged|blocked by .{0,30}policy|responsible ?ai|"
    r"data_?inspection_?failed|content exists risk|prohibited_content",
    re.IGNORECASE,
)
REFUSED = (400, 413, 422)
"""Statuses by which a server refuses one request, as one that is longer than the model's context."""
FORBIDDEN = 403
"""Of a refused key; some providers' filters of contents refuse one request with it."""
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


def error_text(body: bytes, key: str) -> str:
    """The message in the body of an error answer of a server, on one line.

    Args:
        body: as it came.
        key: that the server was given; some repeat it, and it is taken out.
    """
    try:
        return error_message(parse_json(body), key)
    except ValueError:
        return _one_line(body.decode(errors="replace"), key)


def error_message(body: Any, key: str) -> str:
    """The same of a body that was read; servers differ in where they put it."""
    error = body.get("error") or body.get("detail") or body if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        error = error.get("message") or error
    return _one_line(str(error or ""), key)


def without_key(text: str, key: str) -> str:
    """A text with stars in place of the key."""
    return text.replace(key, "***") if key else text


def is_filtered(body: bytes) -> bool:
    """Whether an error answer says that what was asked is what the provider does not let through."""
    return _FILTERED.search(body.decode(errors="replace")) is not None


def _one_line(text: str, key: str) -> str:
    return without_key(" ".join(text.split()), key)[:300]  # a part of the key would be left at the cut


def listed_models(body: Any) -> dict[str, dict[str, Any]]:
    """Name -> what /v1/models tells of it; empty where it lists none or answers in another form."""
    try:
        return {str(row["id"]): dict(row) for row in body["data"]}
    except (LookupError, TypeError, ValueError):
        return {}
