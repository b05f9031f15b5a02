"""A model behind an OpenAI-compatible server as an evaluation target: many requests at once, each retried."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.prompt import Answer, Key, Prompt, ServerGone, Tick
from nano3.eval.server_tokens import LocalTokens, ServerTokens, Tokens

if TYPE_CHECKING:
    from nano3.client.server import Reply

UNTOLD = ("id", "object", "created", "owned_by", "permission")
"""Fields of a listed model that say nothing of its weights, or change with each start of the server."""
PREFIX_NOTE = (
    "the server has no /tokenize: the beginning of each answer was put at the end of the user's turn, not behind the "
    "opening of the assistant's"
)
EXTRAS_NOTE = "the server refuses {names}: asked without"


class ServerTarget:
    """nano3.eval.prompt.Target on /v1/completions and /v1/chat/completions."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        api_key: str = "",
        tokenizer: str = "",
        concurrency: int = 8,
        timeout: float = 3600.0,
        retries: int = 6,
        first_wait: float = 1.0,
    ) -> None:
        """Ask the server which models it has.

        Args:
            url: without /v1.
            model: name to send; empty: the first that the server lists.
            api_key: sent as bearer token.
            tokenizer: a folder with a tokenizer.json; empty: the server's own /tokenize.
            concurrency: requests under way at once.
            timeout: seconds until one try is given up.
            retries: tries after the first one, each twice as long after the one before.
            first_wait: seconds before the first of them.

        Raises:
            UserError: no server there, it refuses the key, or it lists no such model.
        """
        from nano3.client.attempts import Tries
        from nano3.client.server import Server

        self._stop = Event()
        self._server = Server(
            url, api_key, timeout=timeout, tries=Tries(retries + 1, first_wait), keep=concurrency,
            wait=self._stop.wait, tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        self.url, self.concurrency = url, concurrency
        self._without_extras = False
        self.notes: list[str] = []
        self._noting = Lock()
        self.name, listed = self._server.find_model(model)
        self.max_context: int | None = listed.get("max_model_len")
        self.identity = f"{self.name} at {url.rstrip('/')}{_fingerprint(listed)}"
        self._tokenizer, self._tokens = tokenizer, None

    @property
    def tokens(self) -> Tokens:
        """The model's tokenizer.

        Raises:
            UserError: the server has none to ask, and none was given.
        """
        if self._tokens is None:
            self._tokens = self._find_tokens()
        return self._tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.tokens.encode(text)

    def count_tokens(self, text: str) -> int:
        """Number of those."""
        return len(self.tokens.encode(text))

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of a whole prompt."""
        if prompt.messages is not None and isinstance(self.tokens, LocalTokens):
            prompt = Prompt(messages=_with_prefix(prompt), max_tokens=prompt.max_tokens)
        return len(self.tokens.ids(prompt))

    def generate(self, prompts: Iterable[tuple[Key, Prompt]], tick: Tick | None = None) -> Iterator[tuple[Key, Answer]]:
        """As Target.generate; the tick is never called, since servers do not tell how far a prompt is. Answers that
        came before the server went away are given out before ServerGone is raised."""
        source = iter(prompts)
        self._stop.clear()
        results: SimpleQueue[tuple[Key, Answer | BaseException]] = SimpleQueue()
        under_way, failure = 0, None
        try:
            while True:
                while failure is None and under_way < self.concurrency:
                    try:
                        taken = next(source, None)
                    except Exception as error:  # writing a prompt asks for tokens: what is under way is waited for
                        failure = error
                        if isinstance(error, ServerGone):
                            self._stop.set()
                        break
                    if taken is None:
                        break
                    # Daemons: an interrupted evaluation must not wait for an answer that takes an hour.
                    Thread(target=self._work, args=(*taken, results), daemon=True).start()
                    under_way += 1
                if not under_way:
                    break
                key, result = results.get()
                under_way -= 1
                if isinstance(result, Answer):
                    yield key, result
                else:
                    failure = failure or result
                    self._stop.set()
            if failure is not None:
                raise failure
        finally:
            self._stop.set()

    def _work(self, key: Key, prompt: Prompt, results: SimpleQueue[tuple[Key, Answer | BaseException]]) -> None:
        try:
            results.put((key, self._answer(prompt)))
        except BaseException as error:
            results.put((key, error))

    def close(self) -> None:
        """Close the connections."""
        self._stop.set()
        self._server.close()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """The server's answer to one request, tried again while it fails in a way that may pass.

        Raises:
            ServerGone: every try failed.
        """
        from nano3.client.attempts import NoAnswerError

        try:
            return self._server.request(method, path, body)
        except NoAnswerError as error:
            raise ServerGone(f"{self.url} does not answer ({error.reason}, {error.tries} tries)") from None

    def _answer(self, prompt: Prompt) -> Answer:
        path, body, extras = self._body(prompt)
        if self._without_extras:
            extras = {}
        response = self.request("POST", path, {**body, **extras})
        if response.status in (400, 422) and extras:
            again = self.request("POST", path, body)
            if again.status == 200:
                self._without_extras = True
                self._note(EXTRAS_NOTE.format(names=" and ".join(extras)))
                response = again
        if response.status != 200:
            raise UserError(f"{self.url}{path} answers HTTP {response.status}: {self._server.error_text(response)}")
        return _read(response, self.url + path)

    def _body(self, prompt: Prompt) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """(path, body, what not every server knows)."""
        body: dict[str, Any] = {
            "model": self.name, "max_tokens": prompt.max_tokens, "temperature": prompt.temperature,
        }  # fmt: skip
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if prompt.seed is not None:
            body["seed"] = prompt.seed
        if prompt.text is not None:
            body["prompt"] = prompt.text + prompt.prefix
            return "/v1/completions", body, {"add_special_tokens": True}
        if prompt.ids is not None:
            ids = [*prompt.ids, *(self.encode(prompt.prefix) if prompt.prefix else ())]
            return "/v1/completions", {**body, "prompt": ids}, {}
        if prompt.prefix and self._server_tokens() is not None:
            return "/v1/completions", {**body, "prompt": list(self.tokens.ids(prompt))}, {}
        if prompt.prefix:
            self._note(PREFIX_NOTE)
        body["messages"] = [dict(message) for message in _with_prefix(prompt)]
        return "/v1/chat/completions", body, {"chat_template_kwargs": {"enable_thinking": prompt.thinking}}

    def _server_tokens(self) -> ServerTokens | None:
        return self.tokens if isinstance(self.tokens, ServerTokens) else None

    def _find_tokens(self) -> Tokens:
        if self._tokenizer:
            return LocalTokens(self._tokenizer)
        tokens = ServerTokens(self.request, self.name, self._server.error_text)
        if not tokens.works():
            raise UserError(f"{self.url} has no /tokenize: name the model's tokenizer with --tokenizer PATH")
        return tokens

    def _note(self, note: str) -> None:
        with self._noting:
            if note not in self.notes:
                self.notes.append(note)


def _fingerprint(listed: Mapping[str, Any]) -> str:
    """A hash of what a server tells of a model (vLLM: the folder that it was loaded from, its length); empty where it
    tells nothing but the name."""
    told = {key: value for key, value in listed.items() if key not in UNTOLD and value is not None}
    if not told:
        return ""
    return f" ({hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()})"


def _with_prefix(prompt: Prompt) -> tuple[Mapping[str, Any], ...]:
    """The messages, the answer's beginning at the end of the last one."""
    messages = prompt.messages or ()
    if not prompt.prefix or not messages:
        return messages
    last = messages[len(messages) - 1]
    return (*messages[:-1], {**last, "content": f"{last['content']}{prompt.prefix}"})


def _read(response: Reply, where: str) -> Answer:
    try:
        row = response.json()
        choice, usage = row["choices"][0], row.get("usage") or {}
        text = choice["text"] if "text" in choice else choice["message"].get("content")
        return Answer(
            text or "", usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0,
            choice.get("finish_reason") or "stop",
        )  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not an answer in OpenAI form ({type(error).__name__}: {error})") from error
