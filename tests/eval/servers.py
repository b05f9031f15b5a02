"""A small HTTP server whose answers a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Answerer = Callable[[str, dict[str, Any]], Reply]


@contextmanager
def answering(answer: Answerer, port: int = 0) -> Iterator[str]:
    """A server on a port (0: a free one) whose answer to (path, body) is (status, JSON) or (status, JSON, headers);
    its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(answer(self.path, {}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(answer(self.path, json.loads(body)))

        def _send(self, reply: Reply) -> None:
            data = json.dumps(reply[1]).encode()
            with suppress(ConnectionError):  # a client that gave up
                self._write(reply, data)

        def _write(self, reply: Reply, data: bytes) -> None:
            self.send_response(reply[0])
            self.send_header("Content-Length", str(len(data)))
            for name, value in (reply[2] if len(reply) > 2 else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
