"""Who answers in `nano3 chat`: a local model, or a server."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nano3.chat.answer import CHAT_TOKENS
from nano3.client.replies import seconds_of
from nano3.config.errors import UserError
from nano3.reading import parse_json

if TYPE_CHECKING:
    import httpx2

    from nano3.client.server import Server
    from nano3.engine.protocol import GenerationEngine
    from nano3.engine.request import Request

Message = dict[str, Any]
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@dataclass(frozen=True)
class ChatSettings:
    """How answers are to be made; None leaves the choice to whoever answers."""

    thinking: bool | None = None
    thinking_budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields that are set, as both the engine and the servers name them."""
        names = ("temperature", "top_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Piece:
    """Some of an answer."""

    content: str = ""
    reasoning: str = ""
    tokens: int | None = None
    """Tokens of the answer so far, where that is known."""
    cut_off: bool = False
    """The answer ended because it may be no longer."""


class Backend(Protocol):
    """Answers conversations, one at a time."""

    name: str

    @property
    def thinks(self) -> bool | None:
        """Whether answers begin with thinking unless the settings say so; None: not known. False of base models."""
        ...

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Piece]:
        """The answer piece by piece; closing the iterator stops it.

        Raises:
            UserError: it cannot be answered, in one line.
            KeyboardInterrupt: the user pressed Ctrl-C.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class LocalBackend:
    """A model in this process."""

    def __init__(self, engine: GenerationEngine, name: str, thinks: bool = True) -> None:
        self.name, self.thinks = name, thinks
        self._engine = engine
        self._ids = itertools.count()

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Piece]:
        """As in `Backend`; Ctrl-C takes effect between two steps of the engine, so that it stays whole."""
        from nano3.data.chat.parsing.output_parser import OutputParser

        request, thinking_open = self._request(messages, settings)
        parser = OutputParser(None, thinking_open=thinking_open, parse_tools=False)
        tokens = 0
        for update in self._updates(request):
            tokens += len(update.tokens)
            deltas = parser.push(update.text) if update.text else []
            if update.finish == "error":
                raise UserError(update.error or "the engine failed")
            if update.finish is not None:
                deltas = [*deltas, *parser.finish()]
            for delta in deltas:
                yield Piece(delta.content, delta.reasoning, tokens)
            if update.finish is not None:
                yield Piece(tokens=tokens, cut_off=update.finish == "length")

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _request(self, messages: Sequence[Message], settings: ChatSettings) -> tuple[Request, bool]:
        from nano3.chat.prompts import encode_chat
        from nano3.engine.request import Request, Sampling, ThinkingBudget

        thinking = self.thinks if settings.thinking is None else settings.thinking
        prompt = encode_chat(self._engine.tokenizer, messages, thinking)
        room = self._engine.max_context - len(prompt.ids)
        if room < 1:
            raise UserError(f"the conversation has {len(prompt.ids)} tokens, more than the context of "
                            f"{self._engine.max_context} holds; begin anew with /new")  # fmt: skip
        wanted = settings.sampling()
        wanted["max_tokens"] = min(wanted.get("max_tokens", CHAT_TOKENS), room)
        budget = None
        if prompt.thinking_open and settings.thinking_budget is not None:
            budget = ThinkingBudget(settings.thinking_budget)
        sampling = Sampling(**wanted, stop_ids=prompt.stop_ids, thinking=budget)
        return Request(f"chat-{next(self._ids)}", prompt.ids, sampling, cache_at=prompt.cache_at), bool(
            prompt.thinking_open
        )

    def _updates(self, request: Request) -> Iterator[Any]:
        from nano3.chat.prefill import PrefillProgress

        self._engine.add(request)
        try:
            with interrupt_held() as interrupted, PrefillProgress(self._engine, request.id) as progress:
                while True:
                    for update in self._engine.step():
                        progress.clear()
                        yield update
                        if update.finish is not None:
                            return
                    progress.show()
                    if interrupted():
                        raise KeyboardInterrupt
        finally:
            self._engine.abort(request.id)


@contextlib.contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is only remembered: the value says whether there was one. A second one ends the program,
    for nothing may go on with an engine that was interrupted within a step."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()

    def remember(*_: object) -> None:
        if pressed.is_set():
            raise SystemExit(INTERRUPTED)
        pressed.set()

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


class ServerBackend:
    """Any server that speaks OpenAI's chat completions."""

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        """Connect, and ask which models there are.

        Raises:
            UserError: no such server, or it refuses.
        """
        from nano3.client.server import Server, base_address

        # An answer may begin late: only connecting has a time limit.
        self._server = Server(base_address(url), api_key or "", timeout=None, proxies=True)
        self._url = self._server.url
        self.thinks: bool | None = None
        self.name = model or self._first_model()

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Piece]:
        """As in `Backend`."""
        body = {
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings.sampling(),
        }
        if settings.thinking is not None:
            body["enable_thinking"] = settings.thinking
        if settings.thinking is not False and settings.thinking_budget is not None:
            body["thinking_budget"] = settings.thinking_budget
        with self._reach(), self._server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                raise UserError(_refusal(response, self._server))
            yield from _pieces(response, self._server)

    def close(self) -> None:
        """Hang up."""
        self._server.close()

    def _first_model(self) -> str:
        name, listed = self._server.find_model()
        self.thinks = listed.get("thinking_default")
        return name

    @contextlib.contextmanager
    def _reach(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.TransportError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self._url}: cannot reach the server ({self._server.clean(reason)})") from error


def _pieces(response: httpx2.Response, server: Server) -> Iterator[Piece]:
    """The stream of an answer; raises UserError where it ends too early."""
    import httpx2

    ended = False
    try:
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if data == "[DONE]":
                return
            if data:
                piece, last = _piece(data, server)
                ended |= last
                yield piece
    except httpx2.TransportError:
        ended = False
    if not ended:
        raise UserError("the connection ended before the answer did; /retry asks again")


def _piece(data: str, server: Server) -> tuple[Piece, bool]:
    """A streamed chunk, and whether it ends the answer."""
    try:
        chunk = parse_json(data)
    except ValueError as error:
        raise UserError("the server sent something that is not JSON") from error
    if chunk.get("error"):
        raise UserError(f"the server failed: {server.error_message(chunk) or 'no reason given'}")
    usage = chunk.get("usage") or {}
    choice = (chunk.get("choices") or [{}])[0]
    delta, finish = choice.get("delta") or {}, choice.get("finish_reason")
    calls = "".join(_call_text(call) for call in delta.get("tool_calls") or [])
    content = (delta.get("content") or "") + calls
    reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
    return Piece(content, reasoning, usage.get("completion_tokens"), finish == "length"), finish is not None


def _call_text(call: dict[str, Any]) -> str:
    function = call.get("function") or {}
    name = function.get("name")
    return (f"\n[tool call] {name} " if name else "") + (function.get("arguments") or "")


def _refusal(response: httpx2.Response, server: Server) -> str:
    from nano3.client.server import Reply

    message = server.error_text(Reply(response.status_code, response.content)) or response.reason_phrase
    if response.status_code in (401, 403):
        return f"the server refuses the API key ({message}); give --api-key or set NANO3_API_KEY"
    if response.status_code == 429:
        wait = seconds_of(response.headers.get("Retry-After"))
        return "the server is busy; " + (f"/retry in {wait:.0f} s" if wait else "/retry later")
    return f"the server answered {response.status_code}: {message}"
