"""A server that plays scripted answers to the chat page, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from importlib.resources import files

from playwright.sync_api import Page

from nano3.serve.page_routes import CHAT, HEADERS, media_type

USAGE = {"prompt_tokens": 21, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 16}}
WAIT_S = 60


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def text_answer(text, **more):
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    return [*(delta(content=piece) for piece in pieces), delta(finish="stop", **more), {"choices": [], "usage": USAGE}]


def written(text, finish="stop"):
    """Chunks of /v1/completions."""
    pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
    chunks = [{"choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in pieces]
    return [*chunks, {"choices": [{"index": 0, "text": "", "finish_reason": finish}]}, {"choices": [], "usage": USAGE}]


class Script:
    """What the next requests are answered with, and what was asked."""

    def __init__(self):
        self.plays: list = []
        self.asked: list[dict] = []
        self.loaded: list[str] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.models: list[dict] = [{"id": "scripted-model"}]
        self.go_on = threading.Event()
        self.left = threading.Event()
        self.url = ""
        self.close: Callable[[], object] = lambda: None

    def play(self, *chunks, done=True):
        """Answer with these chunks; a callable among them is called in its place."""
        self.plays.append((chunks, done))

    def refuse(self, status, message, code=None, **headers):
        self.plays.append((status, {"error": {"message": message, "code": code}}, headers))

    def wait(self):
        assert self.go_on.wait(WAIT_S)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            return self.models()
        name = self.path.removeprefix("/") or CHAT
        self.script.loaded.append(name)
        body = files("nano3.serve").joinpath("page", name).read_bytes()
        self.answer(200, body, media_type(name), HEADERS)

    def models(self):
        if self.refused():
            return
        self.answer(200, json.dumps({"object": "list", "data": self.script.models}).encode(), "application/json")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        self.script.asked.append(body)
        self.script.keys.append(self.headers["Authorization"])
        play = self.script.plays.pop(0)
        if isinstance(play[0], int):
            status, error, headers = play
            self.answer(status, json.dumps(error).encode(), "application/json", headers)
        else:
            self.stream(*play)

    def refused(self):
        key = self.script.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self.answer(401, b'{"error": {"message": "Incorrect API key."}}', "application/json")
        return True

    def answer(self, status, body, content_type, headers=()):
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks, done):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks:
                if callable(chunk):
                    chunk()
                else:
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if done:
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.script.left.set()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
