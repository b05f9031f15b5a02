"""An OpenAI-compatible server: its address and key, its models, and requests that are tried again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from nano3.client.attempts import TRIES, Attempts, Tries
from nano3.client.replies import (
    error_message,
    error_text,
    is_passing,
    listed_models,
    seconds_of,
    without_key,
)
from nano3.config.errors import UserError
from nano3.reading import parse_json

CONNECT_SECONDS = 10.0
KEY_NAMES = "--api-key or NANO3_API_KEY"
MODELS = "/v1/models"
MODELS_SECONDS = 30.0
"""In which a server must list its models."""


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    asked: float = 0.0
    """Seconds of Retry-After; 0: none."""

    def json(self) -> Any:
        """The body. Raises ValueError where it is none."""
        return parse_json(self.body)


def base_address(url: str, name: str = "--url") -> str:
    """Where a server is, without a path's /v1; `127.0.0.1:8000` is understood too.

    Raises:
        UserError: no address, or one with a name and password, which are not repeated, or with a query.
    """
    base = (("" if "://" in url else "http://") + url).rstrip("/").removesuffix("/v1")
    for part, signs in (("a name or password", "@"), ("a query", "?#")):
        if any(sign in base for sign in signs):
            raise UserError(f"{name} has {part} in it: give the address alone; a key is read from NANO3_API_KEY")
    try:
        parts = urlsplit(base)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise UserError(f"{name} {url}: give an address such as http://127.0.0.1:8000")
    return base


def http_options(url: str, api_key: str = "", key_names: str = KEY_NAMES, proxies: bool = False) -> dict[str, Any]:
    """Arguments for httpx2.Client and httpx2.AsyncClient: address, key, and certificates only where they are used:
    loading them takes longer than many an answer.

    Args:
        url: without /v1.
        api_key: sent as bearer token.
        key_names: where a key comes from, for people.
        proxies: use those of the environment.

    Raises:
        UserError: a key that cannot stand in a header.
    """
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        raise UserError(f"the API key ({key_names}) has a character that a key cannot have: letters, digits and signs")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "trust_env": proxies, "verify": not url.lower().startswith("http:")}


class Address:
    """A server's address and key, and what its refusals are to people; it makes no request.

    Attributes:
        url: the address, without /v1.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        key_names: str = KEY_NAMES,
        url_name: str = "--url",
        model_name: str = "--model",
    ) -> None:
        """
        Args:
            url: without /v1.
            api_key: in no message.
            key_names, url_name, model_name: where key, address and the wanted model come from, for people.
        """
        self.url, self._key = url, api_key
        self._key_names, self._url_name, self._model_name = key_names, url_name, model_name

    def check_way(self, reply: Reply, path: str) -> None:
        """Raise UserError for an answer that another address or key would mend."""
        if 300 <= reply.status < 400:
            raise UserError(
                f"{self.url}{path} redirects (HTTP {reply.status}): give {self._url_name} the address that it points to"
            )
        if reply.status in (401, 403):
            raise UserError(f"{self.url} refuses the API key ({self.refusal(reply)}): give one with {self._key_names}")

    def error_text(self, reply: Reply) -> str:
        """What an error answer says, the key not in it."""
        return error_text(reply.body, self._key)

    def error_message(self, body: Any) -> str:
        """What the body of an error answer, or an error in a stream, says, the key not in it."""
        return error_message(body, self._key)

    def refusal(self, reply: Reply) -> str:
        """Status and words of an error answer, and how long it asks to wait."""
        text, wait = self.error_text(reply), f"; it asks to wait {reply.asked:.0f} s" if reply.asked else ""
        return f"HTTP {reply.status}" + (f": {text}" if text not in ("", "{}") else "") + wait

    def reason(self, error: Exception) -> str:
        """Why a try brought no whole answer, the key not in it."""
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            return "no answer in time"
        if isinstance(error, ValueError):
            return self.clean(f"the answer is no JSON: {error}")
        return self.clean(" ".join(str(error).split()) or type(error).__name__)

    def clean(self, text: str) -> str:
        """The text without the key."""
        return without_key(text, self._key)


class Server(Address):
    """One server.

    Attributes:
        http: for requests that are read as they come.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        timeout: float | None = 120.0,
        tries: Tries = TRIES,
        keep: int | None = None,
        key_names: str = KEY_NAMES,
        url_name: str = "--url",
        model_name: str = "--model",
        proxies: bool = False,
        wait: Callable[[float], object] = time.sleep,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            url: without /v1.
            api_key: sent as bearer token, and in no message.
            timeout: seconds without a byte until one try is given up; None: any.
            tries: of `request`.
            keep: connections kept open between requests; None: all.
            key_names, url_name, model_name: where key, address and the wanted model come from, for people.
            proxies: use those of the environment.
            wait: sleeps; a true value ends the tries.
            tell: is given a line before each further try.

        Raises:
            UserError: no address, or a key that cannot stand in a header.
        """
        super().__init__(url, api_key, key_names, url_name, model_name)
        options = http_options(url, api_key, key_names, proxies)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=keep)
        try:
            self.http = httpx2.Client(**options, timeout=connect_timeout(timeout), limits=limits)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError) as error:
            raise UserError(f"{url_name} {url}: no address of a server: {error}") from error
        self._timeout, self._tries = timeout, tries
        self._wait, self._tell = wait, tell

    def request(self, method: str, path: str, body: Any = None) -> Reply:
        """The answer to one request, tried again while it fails in a way that may pass: the network, 408, 409, 425, 429
        and 5xx, after Retry-After where that is longer.

        Raises:
            NoAnswerError: every try failed, or the deadline came.
        """
        attempts = Attempts(self._tries)
        while True:
            try:
                reply = self._try(method, path, body, attempts.end)
                if not is_passing(reply.status):
                    return self._whole(reply)
                attempts.refused(reply.status, self.refusal(reply), reply.asked)
            except (httpx2.HTTPError, ValueError) as error:
                attempts.broke(self.reason(error))
            seconds = attempts.wait()
            self._tell(f"{self.url}: {attempts.reason}; trying again in {seconds:g} s")
            if self._wait(seconds):
                raise attempts.given_up()

    def find_model(self, wanted: str = "") -> tuple[str, dict[str, Any]]:
        """A model's name and what the server tells of it: the wanted one, else the first that it lists.

        Raises:
            UserError: no server there, it refuses the key, or it lists no such model.
        """
        try:
            reply = self._try("GET", MODELS, None, time.monotonic() + MODELS_SECONDS)
        except httpx2.HTTPError as error:
            why = self.reason(error)
            raise UserError(f"{self.url}: no answer ({why}); is a server running there? see {self._url_name}") from None
        self.check_way(reply, MODELS)
        try:
            models = listed_models(reply.json() if reply.status < 300 else None)
        except ValueError:
            models = {}
        if not wanted and not models:
            raise UserError(
                f"{self.url}{MODELS} lists no model (HTTP {reply.status}); name one with {self._model_name}"
            )
        if wanted and models and wanted not in models:
            listed = self.clean(", ".join(models))
            raise UserError(f"{self._model_name} {wanted}: {self.url} has no such model; it has {listed}")
        name = wanted or next(iter(models))
        return name, models.get(name, {})

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def _try(self, method: str, path: str, body: Any, end: float) -> Reply:
        """An answer that is whole before `end`."""
        left = end - time.monotonic()
        limit = None if math.isinf(left) and self._timeout is None else max(0.1, min(self._timeout or math.inf, left))
        with self.http.stream(method, path, json=body, timeout=connect_timeout(limit)) as reply:
            parts = []
            for part in reply.iter_bytes():
                parts.append(part)
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the reply did not end in time")
            return Reply(reply.status_code, b"".join(parts), seconds_of(reply.headers.get("Retry-After")))

    def _whole(self, reply: Reply) -> Reply:
        if self._tries.json_only and reply.status < 300:
            reply.json()
        return reply


def connect_timeout(seconds: float | None) -> httpx2.Timeout:
    """Seconds without a byte, of which a connection may take fewer; None: any number."""
    return httpx2.Timeout(seconds, connect=CONNECT_SECONDS if seconds is None else min(seconds, CONNECT_SECONDS))
