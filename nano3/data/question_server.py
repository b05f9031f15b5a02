"""Requests to an OpenAI-compatible server: tried again where that may help, within a time, the key in no message."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from nano3.config.errors import UserError
from nano3.reading import parse_json

ATTEMPTS = 5
TIMEOUT = 120.0
"""Seconds without a byte before an attempt is given up."""
DEADLINE = 900.0
"""Seconds for all attempts at one reply."""
RETRIED = (408, 429)
"""Statuses below 500 after which another attempt is made."""


class NoAnswerError(UserError):
    """The server cannot be reached, or gave no answer in time."""


class Server:
    """One server.

    Attributes:
        url: its address.
    """

    def __init__(self, url: str, key: str = "", wait: float = 1.0, deadline: float = DEADLINE) -> None:
        """`wait`: seconds before the second attempt, doubled before each further one.

        Raises:
            UserError: `url` is no address, or `key` cannot stand in a header.
        """
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError("NANO3_API_KEY has a character that a key cannot have: letters, digits and signs only")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(TIMEOUT, connect=10.0))
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(f"data.generate.url {url!r} is no address of a server: {error}") from error
        self.url, self._key, self._wait, self._deadline = url, key, wait, deadline

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a reply; network failures, 408, 429 and 5xx are tried again, after Retry-After where it is longer.

        Raises:
            NoAnswerError: no answer in ATTEMPTS attempts or before the deadline.
            UserError: the server refuses or redirects.
        """
        reason, end, asked_for = "", time.monotonic() + self._deadline, 0.0
        for attempt in range(ATTEMPTS):
            pause = max(self._wait * 2 ** (attempt - 1), asked_for) if attempt else 0.0
            if time.monotonic() + pause >= end:
                raise NoAnswerError(self._no_answer(path, f"in {self._deadline:g} s", reason))
            time.sleep(pause)
            try:
                status, asked_for, text = self._attempt(method, path, body, end)
                if status < 300:
                    return parse_json(text)
            except (httpx.HTTPError, ValueError) as error:
                reason, asked_for = self._clean(str(error) or type(error).__name__), 0.0
                continue
            reason = f"status {status}: {self._clean(text.strip())[:200]}"
            reason += f"; it asks to wait {asked_for:.0f} s" if asked_for else ""
            if status < 400:
                raise UserError(f"{self.url}{path} redirects (status {status}): give the address that it points to")
            if status not in RETRIED and status < 500:
                raise UserError(f"{self.url}{path} refuses ({reason}); its key is read from NANO3_API_KEY")
        raise NoAnswerError(self._no_answer(path, f"in {ATTEMPTS} attempts", reason))

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None, end: float) -> tuple[int, float, str]:
        """Status, seconds of Retry-After (0: none) and text of a reply that is whole before `end`."""
        limit = max(0.1, min(TIMEOUT, end - time.monotonic()))
        with self._http.stream(
            method, path, json=body, timeout=httpx.Timeout(limit, connect=min(limit, 10.0))
        ) as reply:
            parts = []
            for part in reply.iter_bytes():
                parts.append(part)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the reply did not end in time")
            text = b"".join(parts).decode("utf-8", "replace")
            return reply.status_code, _seconds(reply.headers.get("Retry-After", "")), text

    def _no_answer(self, path: str, limit: str, reason: str) -> str:
        return (
            f"{self.url}{path} gave no answer {limit} ({reason}): run the same command again when it does; what it "
            "wrote so far is kept"
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _seconds(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0 where it is neither."""
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
