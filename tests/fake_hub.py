"""A Hugging Face hub on the loopback with one model: what `huggingface_hub.snapshot_download` asks of the real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT, BRANCHES = "0123456789abcdef0123456789abcdef01234567", ("main", "v1")


class FakeHub(ThreadingHTTPServer):
    """Serves the files of `folder` as the repository `repo`; `gets` lists the files that were downloaded."""

    daemon_threads = True

    def __init__(self, repo: str, folder: Path, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.folder, self.token = repo, folder, token
        self.gets: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if not path.startswith((f"/{hub.repo}/", f"/api/models/{hub.repo}")):
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/"):
            return self._api(path)
        self._file(path.split("/resolve/")[-1].partition("/")[2], body)

    def _api(self, path: str) -> None:
        files = sorted(str(f.relative_to(self.server.folder)) for f in self.server.folder.rglob("*") if f.is_file())
        revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
        if "/tree/" in path:
            revision = path.rpartition("/tree/")[2]
        if revision not in (*BRANCHES, COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            rows = [{"type": "file", "path": f, "size": (self.server.folder / f).stat().st_size, "oid": "0" * 40}
                    for f in files]  # fmt: skip
            return self._send(200, json.dumps(rows).encode())
        info = {"id": self.server.repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
        self._send(200, json.dumps(info).encode())

    def _file(self, name: str, body: bool) -> None:
        file = self.server.folder / name
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if body:
            self.server.gets.append(name)
        self._send(200, data, headers)

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def fake_hub(repo: str, folder: Path, token: str = "") -> Iterator[FakeHub]:
    """A running hub."""
    hub = FakeHub(repo, folder, token)
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
