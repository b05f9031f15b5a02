"""What a server refuses: wrong keys, large bodies, a full queue, too long a time, a broken engine; how it ends."""

import threading

import httpx2
import pytest

from nano3.engine.engine import Engine
from nano3.serve.transport.errors import ApiError

from ..waiting import wait_until

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
LONG = CHAT | {"max_tokens": 3000, "ignore_eos": True}


class Breaking(Engine):
    """Breaks at its third step."""

    steps = 0

    def step(self):
        self.steps += 1
        if self.steps >= 3:
            raise RuntimeError("out of luck")
        return super().step()


def chat(client, **body):
    return client.post("/v1/chat/completions", json=CHAT | body)


def in_background(call):
    """Runs `call` in a thread; the list gets its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def test_any_of_the_keys_opens_the_protected_paths_and_only_those_need_one(start):
    server = start(api_keys=("first", "second"), cors_origins=("https://page.example",))
    with server.client() as client:
        for sent in (None, b"Bearer third", b"first", b"Basic first", b"Bearer firs\xe9t"):
            headers = {} if sent is None else {b"Authorization": sent}
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/tokenize"),
                                 ("POST", "/detokenize"), ("POST", "/v1/completions")):  # fmt: skip
                response = client.request(method, path, headers=headers, json=CHAT)
                assert response.status_code == 401, path
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert "first" not in response.text
        for key in ("first", "second"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/version", "/"):
            assert client.get(path).status_code == 200
        refused = 'nano3_http_requests_total{method="POST",route="/v1/completions",status="401"} 5.0'
        assert refused in client.get("/metrics").text
        preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/chat/completions", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = client.options("/v1/chat/completions", headers=preflight | {"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_large_body_is_refused_however_it_comes(start):
    server = start(max_body_bytes=2000)
    with server.client() as client:
        assert chat(client).status_code == 200
        large = b'{"messages": [{"role": "user", "content": "' + b"x" * 3000 + b'"}]}'
        headers = {"content-type": "application/json"}
        for content in (large, iter([large[:1500], large[1500:]])):
            response = client.post("/v1/chat/completions", content=content, headers=headers)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
        assert chat(client).status_code == 200


def test_a_full_queue_is_429_until_there_is_room(start, make_engine):
    server = start(make_engine(max_sequences=1), max_queue=1)
    with server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as running:
            lines = running.iter_lines()
            next(lines)
            wait_until(lambda: server.stats().running == 1)
            thread, waiting = in_background(lambda: chat(client))
            wait_until(lambda: server.service.thread.unfinished == 2)
            refused = chat(client)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        thread.join(120)
        assert waiting[0].status_code == 200
        assert chat(client).status_code == 200


def test_a_request_that_takes_too_long_is_504_and_frees_what_it_held(start):
    server = start(request_timeout=0.3)
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=LONG).status_code == 504
        streamed = client.post("/v1/chat/completions", json=LONG | {"stream": True})
        assert '"code":"timeout"' in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
        wait_until(lambda: server.service.thread.unfinished == 0 and server.stats().running == 0)
        assert chat(client, max_tokens=1).status_code == 200


def test_a_broken_engine_answers_500_and_is_not_ready(start, make_engine, caplog):
    server = start(make_engine(Breaking, max_sequences=1))
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        thread, results = in_background(lambda: client.post("/v1/chat/completions", json=LONG))
        streamed = client.post("/v1/chat/completions", json=LONG | {"stream": True})
        thread.join(120)
        assert results[0].status_code == 500
        assert "out of luck" in results[0].json()["error"]["message"]
        assert streamed.status_code == 500 or "out of luck" in streamed.text
        for body in (CHAT, CHAT | {"stream": True}):
            assert client.post("/v1/chat/completions", json=body).status_code == 500
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 500
        for path in ("/health", "/health/ready", "/health/live"):
            assert client.get(path).status_code == 503
            assert client.get(path).json()["status"] == "failed"
        assert "nano3_ready 0.0" in client.get("/metrics").text
        assert server.service.thread.unfinished == 0
    assert "out of luck" in caplog.text


def test_a_silent_stream_is_kept_alive_with_the_progress(start, make_engine):
    server = start(make_engine(step_tokens=16), keep_alive_seconds=0.001)
    body = CHAT | {"messages": [{"role": "user", "content": "jugs " * 300}], "stream": True}
    with server.client() as client:
        text = client.post("/v1/chat/completions", json=body).text
    comments = [line for line in text.splitlines() if line.startswith(":")]
    assert any(line.startswith(": prefill ") for line in comments)


def test_unknown_paths_and_methods_are_told_in_the_same_form(client):
    for response, status in ((client.get("/v2/models"), 404), (client.get("/v1/chat/completions"), 405),
                             (client.post("/unknown"), 404)):  # fmt: skip
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_sent_as_json_is_told_so(client, content_type):
    response = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": content_type})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


def test_draining_ends_accepted_requests_and_refuses_new_ones(start):
    server = start()
    with server.client() as client, httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as other:
        thread, results = in_background(lambda: other.post("/v1/chat/completions", json=LONG | {"max_tokens": 100}))
        wait_until(lambda: server.stats().running == 1)
        server.service.thread.draining = True
        refused = chat(client)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        thread.join(120)
        assert results[0].status_code == 200
        assert results[0].json()["usage"]["completion_tokens"] == 100


def test_text_that_cannot_fit_is_refused_before_it_is_encoded(client, server):
    text = "a" * (server.service.most_characters + 1)
    bodies = {
        "/v1/completions": {"prompt": text},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
        "/tokenize": {"prompt": "a" * (1 << 21)},
    }
    for path, body in bodies.items():
        response = client.post(path, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert "characters" in response.json()["error"]["message"]
    assert client.post("/tokenize", json={"prompt": text}).json()["count"] > 0


def test_large_bodies_are_planned_one_after_the_other_and_small_ones_beside_them(start):
    server = start()
    service, encode = server.service, server.service.encode
    inside, most, leave = [], [], threading.Event()

    def slow(text, *rest):
        if len(text) > 1000:
            inside.append(text)
            most.append(len(inside))
            leave.wait(120)
            inside.pop()
            raise ApiError(400, "seen")
        return encode(text, *rest)

    service.encode = slow
    large = {"prompt": "a " * 200_000}
    with server.client() as client, server.client() as other, server.client() as third:
        threads = [in_background(lambda c=c: c.post("/tokenize", json=large)) for c in (client, other)]
        wait_until(lambda: inside)
        assert third.post("/tokenize", json={"prompt": "a"}).status_code == 200
        leave.set()
        for thread, results in threads:
            thread.join(120)
            assert results[0].json()["error"]["message"] == "seen"
    assert most == [1, 1]


def test_large_bodies_in_work_are_bounded_and_small_ones_are_taken(start, monkeypatch):
    monkeypatch.setattr("nano3.serve.transport.middleware.LARGE", 1000)
    monkeypatch.setattr("nano3.serve.transport.middleware.LARGE_AT_ONCE", 1)
    server = start(max_body_bytes=4000)
    with server.client() as client, server.client() as other:
        held = LONG | {"stream": True, "pad": "x" * 2500}
        with other.stream("POST", "/v1/chat/completions", json=held) as stream:
            assert stream.status_code == 200
            busy = chat(client, pad="x" * 2500)
            assert busy.status_code == 503
            assert busy.json()["error"]["code"] == "busy"
            assert int(busy.headers["retry-after"]) >= 1
            assert chat(client, max_tokens=1).status_code == 200
        wait_until(lambda: chat(client, pad="x" * 2500).status_code == 200)
