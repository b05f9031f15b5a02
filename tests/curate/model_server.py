"""A server of chat completions that says what a test tells it to, and fails as often as it is told to."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"
Reply = Callable[[str, dict], Any]


@dataclass
class Faults:
    """Shares of requests that fail, drawn by a seeded generator; at most one of them a request."""

    full: float = 0.0
    """429 with Retry-After."""
    broken: float = 0.0
    """500."""
    hang: float = 0.0
    """No answer for `hang_seconds`."""
    cut: float = 0.0
    """finish_reason `length`."""
    malformed: float = 0.0
    """200 with half a JSON text."""
    hang_seconds: float = 30.0
    retry_after: str = "0.05"
    """Seconds or a date."""
    seed: int = 0


class ModelServer(ThreadingHTTPServer):
    """Answers `reply(prompt, body)`: a text, a whole choice as a dict, or (status, words).

    Attributes:
        prompts: user messages of all requests, as they came.
        bodies: their whole bodies.
        keys: their Authorization headers.
        kinds: how many requests ended in which way.
        most: requests that were under way at once.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Reply = lambda prompt, body: "fine", faults: Faults | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.faults = reply, faults or Faults()
        self.seconds = 0.0
        self.capacity = 0
        """Requests that it takes at once; further ones get 429. 0: any number."""
        self.models = [{"id": MODEL, "max_model_len": 4096}]
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.random = random.Random(self.faults.seed)
        self.under_way = 0
        self.clear()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def clear(self) -> None:
        """Forget what came so far."""
        self.prompts: list[str] = []
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.kinds: Counter[str] = Counter()
        self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def draw(self) -> str:
        """What becomes of a request."""
        place = self.random.random()
        for kind in ("full", "broken", "hang", "cut", "malformed"):
            place -= getattr(self.faults, kind)
            if place < 0:
                return kind
        return "answered"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def do_GET(self) -> None:
        self._send(200, {"data": self.server.models})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with server.lock:
            server.prompts.append(prompt)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
            over = 0 < server.capacity < server.under_way
            kind = "full" if over else server.draw()
            server.kinds[kind] += 1
        try:
            self._answer(kind, prompt, body)
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, kind: str, prompt: str, body: dict) -> None:
        server = self.server
        if kind == "full":
            self._send(429, {"error": {"message": "full"}}, {"Retry-After": server.faults.retry_after})
            return
        if kind == "broken":
            self._send(500, {"error": {"message": "broken"}})
            return
        if kind == "hang":
            server.stopping.wait(server.faults.hang_seconds)
            self.close_connection = True
            return
        if server.seconds:
            time.sleep(server.seconds)
        said = server.reply(prompt, body)
        if isinstance(said, tuple):
            self._send(said[0], {"error": {"message": said[1]}})
            return
        choice = said if isinstance(said, dict) else {"message": {"content": said}, "finish_reason": "stop"}
        if kind == "cut":
            choice = choice | {"finish_reason": "length"}
        written = [str(choice["message"].get(part) or "") for part in ("reasoning_content", "content")]
        words = len(" ".join(written).split())
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": words}
        self._send(200, {"choices": [choice], "usage": usage}, cut=kind == "malformed")

    def _send(self, status: int, value: Any, headers: dict | None = None, cut: bool = False) -> None:
        data = json.dumps(value).encode()
        data = data[: len(data) // 2] if cut else data
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
