"""A judge behind any OpenAI-compatible URL; each question is asked once, its answer kept."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from nano3.client.attempts import NoAnswerError, Tries
from nano3.client.replies import FORBIDDEN, REFUSED, is_filtered
from nano3.client.server import Server, base_address
from nano3.config.errors import UserError
from nano3.files import write_atomic
from nano3.reading import parse_json
from nano3.rl.environments.base import EnvironmentFaultError, Message

CHAT = "/v1/chat/completions"
KEYS = "NANO3_JUDGE_API_KEY"


class RefusedError(EnvironmentFaultError):
    """The server answers, but not this question."""


class Judge:
    """Asks a model, at temperature 0."""

    def __init__(
        self,
        url: str,
        model: str = "",
        cache: str | Path | None = None,
        max_tokens: int = 1024,
        tries: Tries | None = None,
        url_name: str = "judge_url",
        model_name: str = "judge_model",
    ) -> None:
        """Nothing is asked yet; an API key comes from NANO3_JUDGE_API_KEY.

        Args:
            url: with or without /v1.
            model: empty: the first that the server lists.
            cache: a jsonl file in which answers are kept; None: in memory alone.
            max_tokens: of an answer.
            tries: how often and how long an answer is waited for; None: four times, five minutes at the most.
            url_name, model_name: where URL and model come from, for people.

        Raises:
            UserError: the URL is none, or the file of answers is damaged.
        """
        key = os.environ.get(KEYS, "")
        address = base_address(url, url_name)
        tries = tries or Tries(n=4, deadline=300.0)
        self._server = Server(
            address, key, tries=tries, key_names=KEYS, url_name=url_name, model_name=model_name
        )  # fmt: skip
        self._model, self._max_tokens, self._lock = model, max_tokens, threading.Lock()
        self._path = None if cache is None else Path(cache)
        self._under_way: dict[str, threading.Lock] = {}
        self._known = {} if self._path is None else _read(self._path)

    def ask(self, prompt: str) -> str:
        """The model's answer to one user message.

        Raises:
            EnvironmentFaultError: no answer; as a RefusedError where the server refuses this question.
        """
        return self.chat([{"role": "user", "content": prompt}])

    def chat(self, messages: list[Message]) -> str:
        """The model's next message in a conversation. Raises as `ask`."""
        with self._lock:
            self._model = self._model or self._first_model()
        body = {"model": self._model, "messages": messages, "temperature": 0.0, "max_tokens": self._max_tokens}
        key = hashlib.sha256(json.dumps([self._server.url, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._known:
                return self._known[key]
            under_way = self._under_way.setdefault(key, threading.Lock())
        # One thread asks; others with the same question wait, and find the answer or ask themselves where it failed.
        with under_way:
            with self._lock:
                if key in self._known:
                    return self._known[key]
            answer = self._asked(body)
            self._keep(key, answer)
        return answer

    def find_model(self) -> None:
        """Ask the server for the wanted model, or for its first. Raises UserError: no answer, or no such model."""
        with self._lock:
            self._model = self._server.find_model(self._model)[0]

    def _keep(self, key: str, answer: str) -> None:
        with self._lock:
            self._known[key] = answer
            self._under_way.pop(key, None)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "answer": answer}) + "\n")

    def _asked(self, body: dict) -> str:
        try:
            reply = self._server.request("POST", CHAT, body)
            if reply.status >= 300:
                own = reply.status in REFUSED or (reply.status == FORBIDDEN and is_filtered(reply.body))
                kind = RefusedError if own else EnvironmentFaultError
                raise kind("judge", f"HTTP {reply.status}: {self._server.error_text(reply)}")
            return str(reply.json()["choices"][0]["message"]["content"] or "")
        except (NoAnswerError, LookupError, TypeError, ValueError) as error:
            raise EnvironmentFaultError("judge", f"{self._server.url}: {error}") from error

    def _first_model(self) -> str:
        try:
            return self._server.find_model()[0]
        except UserError as error:
            raise EnvironmentFaultError("judge", str(error)) from error


def _read(path: Path) -> dict[str, str]:
    """Answers by key; a last line that a killed process left half is dropped."""
    if not path.exists():
        return {}
    known, lines = {}, path.read_text("utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            known[row["key"]] = row["answer"]
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: no answer of a judge ({error}); delete the file") from error
            write_atomic(path, "".join(f"{whole}\n" for whole in lines[:-1]))
    return known
