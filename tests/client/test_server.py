"""The client of OpenAI-compatible servers against a local one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nano3.chat.backends import ChatSettings, ServerBackend
from nano3.client.attempts import NoAnswerError, Tries
from nano3.client.replies import error_text, listed_models, pause, seconds_of
from nano3.client.server import Server, base_address, http_options
from nano3.config.errors import UserError

OK = (200, b'{"data": [{"id": "small", "max_model_len": 512}, {"id": "large"}]}', {})


class Scripted(ThreadingHTTPServer):
    """Gives the replies of `script` in turn, the last one again and again: (status, body, headers), or (status, body,
    headers, length) with another Content-Length than the body's."""

    daemon_threads = True
    script: list
    seen: list

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.seen.append((self.command, self.path, self.headers.get("Authorization"), body))
        status, text, headers, *length = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(length[0] if length else len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = bool(length)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted(("127.0.0.1", 0), Handler)
    server.script, server.seen = [OK], []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Waits(list):
    """Notes how long a client would wait, and does not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def from_now(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("form", [lambda seconds: f"{seconds}", lambda seconds: f"{seconds}.5", from_now])
def test_retry_after_is_kept_as_a_number_and_as_a_date(scripted: Scripted, form) -> None:
    scripted.script, waits = [(429, b"{}", {"Retry-After": form(20)}), OK], Waits()
    assert Server(scripted.url, wait=waits).request("POST", "/x", {"a": 1}).status == 200
    assert len(waits) == 1
    assert 18 <= waits[0] <= 20.5
    assert [json.loads(body) for *_, body in scripted.seen] == [{"a": 1}] * 2


def test_retry_after_that_says_nothing_is_no_wait() -> None:
    for text in (None, "", "soon", "-5", "nan", "inf", "Thu, 99 Jan 2020 00:00:00 GMT", from_now(-60)):
        assert seconds_of(text) == 0.0, text
    assert 58 <= seconds_of(from_now(60).replace("GMT", "-0000")) <= 60


def test_waits_double_and_have_a_limit() -> None:
    assert [pause(attempt, 0.0) for attempt in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause(0, 7.0) == 7.0
    assert pause(0, 7000.0) == 60.0
    assert pause(0, 7000.0, longest=float("inf")) == 7000.0


def test_what_may_pass_is_tried_again_and_said(scripted: Scripted) -> None:
    failures = [(status, b'{"error": {"message": "not\\nyet"}}', {}) for status in (408, 409, 425, 429, 500, 503)]
    told, waits = [], Waits()
    scripted.script = [*failures, OK]
    server = Server(scripted.url, tries=Tries(7, first_wait=0.5), wait=waits, tell=told.append)
    assert server.request("GET", "/x").json()["data"]
    assert waits == [0.5, 1, 2, 4, 8, 16]
    assert told[-1] == f"{scripted.url}: HTTP 503: not yet; trying again in 16 s"


@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 422])
def test_what_will_not_pass_is_given_back_at_once(scripted: Scripted, status: int) -> None:
    scripted.script = [(status, b"{}", {})]
    assert Server(scripted.url, wait=Waits()).request("GET", "/x").status == status
    assert len(scripted.seen) == 1


def test_a_cut_answer_is_asked_for_again(scripted: Scripted) -> None:
    scripted.script = [(200, b'{"data": [', {}, 500), OK]
    assert listed_models(Server(scripted.url, wait=Waits()).request("GET", "/x").json()).keys() == {"small", "large"}
    scripted.script = [(200, b'{"data": [', {}), OK]
    whole = Server(scripted.url, tries=Tries(json_only=True), wait=Waits())
    assert listed_models(whole.request("GET", "/x").json()).keys() == {"small", "large"}


def test_tries_and_deadline_end(scripted: Scripted) -> None:
    scripted.script, waits = [(503, b'{"detail": "loading"}', {})], Waits()
    with pytest.raises(NoAnswerError, match=r"no answer in 3 attempts \(HTTP 503: loading\)") as error:
        Server(scripted.url, tries=Tries(3), wait=waits).request("GET", "/x")
    assert (error.value.tries, waits) == (3, [1, 2])
    scripted.script = [(429, b"", {"Retry-After": "3600"})]
    patient = Tries(3, longest_wait=float("inf"), deadline=60)
    with pytest.raises(NoAnswerError, match=r"no answer in 60 s \(HTTP 429; it asks to wait 3600 s\)"):
        Server(scripted.url, tries=patient, wait=waits).request("GET", "/x")
    with pytest.raises(NoAnswerError) as error:
        Server(scripted.url, wait=lambda _: True).request("GET", "/x")
    assert error.value.tries == 1


def test_a_slow_answer_ends_with_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, tries=Tries(1))
        start = time.monotonic()
        with pytest.raises(NoAnswerError, match="no answer in time"):
            server.request("GET", "/x")
        with pytest.raises(UserError, match=r"no answer in time.*is a server running there"):
            server.find_model()
        assert time.monotonic() - start < 60


def test_the_model_is_the_wanted_or_the_first_listed(scripted: Scripted) -> None:
    server = Server(scripted.url, "secret")
    assert server.find_model() == ("small", {"id": "small", "max_model_len": 512})
    assert server.find_model("large")[0] == "large"
    assert {key for _, _, key, _ in scripted.seen} == {"Bearer secret"}
    with pytest.raises(UserError, match=r"--model other: .* has no such model; it has small, large"):
        server.find_model("other")


@pytest.mark.parametrize(
    "reply",
    [(200, b'{"data": []}', {}), (200, b"<html>", {}), (200, b'{"data": 3}', {}), (404, b"", {}), (500, b"", {})],
)
def test_no_models_are_one_line_unless_one_is_named(scripted: Scripted, reply) -> None:
    scripted.script = [reply]
    with pytest.raises(UserError, match=rf"/v1/models lists no model \(HTTP {reply[0]}\); name one with --model"):
        Server(scripted.url).find_model()
    assert Server(scripted.url).find_model("mine") == ("mine", {})


def test_a_refused_key_and_a_redirect_say_what_to_do(scripted: Scripted) -> None:
    scripted.script = [(401, b'{"error": "no key secret here"}', {})]
    with pytest.raises(UserError, match=r"refuses the API key \(HTTP 401: no key \*\*\* here\).*NANO3_API_KEY"):
        Server(scripted.url, "secret").find_model()
    scripted.script = [(308, b"", {"Location": "https://elsewhere"})]
    with pytest.raises(UserError, match=r"redirects \(HTTP 308\): give --there the address"):
        Server(scripted.url, url_name="--there").find_model()


def test_no_server_is_one_line(scripted: Scripted) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="is a server running there"):
        Server(f"http://127.0.0.1:{port}").find_model()


@pytest.mark.parametrize("key", ["a b", "schlüssel", "a\nb", "\ufeffkey"])
def test_a_key_that_no_header_takes_is_refused_unshown(key: str) -> None:
    with pytest.raises(UserError, match="NANO3_API_KEY") as error:
        http_options("http://127.0.0.1", key)
    assert key not in str(error.value)


def test_no_address_is_one_line() -> None:
    with pytest.raises(UserError, match="--url http://a:b: no address of a server"):
        Server("http://a:b")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://me:secret@host", "--url has a name or password in it: give the address alone"),
        ("http://host/v1?key=secret", "--url has a query in it"),
        ("http://[", r"--url http://\[: give an address such as"),
        ("http://host:99999", "--url http://host:99999: give an address such as"),
        ("ftp://host", "--url ftp://host: give an address such as"),
        ("", "--url : give an address such as"),
    ],
)
def test_what_is_no_address_is_one_line_without_secrets(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        base_address(url)
    assert "secret" not in str(error.value)


def test_addresses_lose_the_path_of_the_api() -> None:
    for url in ("127.0.0.1:80", "http://127.0.0.1:80/", "http://127.0.0.1:80/v1", "127.0.0.1:80/v1/"):
        assert base_address(url) == "http://127.0.0.1:80"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too\\n long"}}', "too long"),
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "of FastAPI"}', "of FastAPI"),
        (b'{"message": "bare"}', "bare"),
        (b"<h1>Bad \xff</h1>", "<h1>Bad �</h1>"),
        (b"[1]", "[1]"),
        (b"", ""),
        (b'{"error": "bad key sk\\/1"}', "bad key ***"),
        (b"x" * 298 + b"sk/1", "x" * 298 + "**"),
    ],
)
def test_error_texts_of_all_servers(body: bytes, text: str) -> None:
    assert error_text(body, "sk/1") == text


@pytest.mark.parametrize(
    "reply",
    [
        (403, b'{"error": "no key secret here"}', {}),
        (200, b'data: {"error": {"message": "no key secret here"}}\n\n', {}),
    ],
)
def test_a_chat_does_not_show_a_key_that_the_server_repeats(scripted: Scripted, reply) -> None:
    backend = ServerBackend(scripted.url, "secret", "mine")
    scripted.script = [reply]
    with pytest.raises(UserError, match=r"no key \*\*\* here"):
        list(backend.answer([{"role": "user", "content": "hello"}], ChatSettings()))


@pytest.mark.parametrize(("url", "checked"), [("HTTPS://a.example", True), ("https://a", True), ("Http://a", False)])
def test_certificates_are_checked_however_the_address_is_written(url, checked):
    assert http_options(base_address(url))["verify"] is checked
