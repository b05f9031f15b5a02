from __future__ import annotations

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nano3.data.generated.document_questions import Documents
from nano3.data.generated.document_texts import DocumentTexts
from nano3.data.generated.question_writer import QuestionWriter
from nano3.data.texts.passages import PassageIndex
from nano3.data.tokens.lengths import TokenCounter


class Server(ThreadingHTTPServer):
    """A server that asks for the third word of the passage, beside two answers that are no use."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.keys, self.failures, self.status = 0, set(), 0, 503
        self.headers, self.ended, self.content, self.error = {}, "stop", None, "busy"
        self.question = "What is the third word there ({model})?"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {"data": [{"id": "small"}]})

    def do_POST(self):
        server = self.server
        server.requests += 1
        server.keys.add(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if server.failures:
            server.failures -= 1
            return self.answer(server.status, {"error": server.error}, server.headers)
        passage = body["messages"][0]["content"].split("<passage>\n")[1].split("\n</passage>")[0]
        pairs = [
            {"question": server.question.format(model=body["model"], passage=passage), "answer": passage.split()[2]},
            {"question": "What is not in the text at all?", "answer": "zzz"},
            {"question": "No answer"},
        ]
        content = f"Here:\n```json\n{json.dumps(pairs)}\n```" if server.content is None else server.content
        self.answer(200, {"choices": [{"message": {"content": content}, "finish_reason": server.ended}]})

    def answer(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name in headers:
            self.send_header(name, headers[name])
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


PASSAGE = "alpha beta gamma delta\nepsilon"


def test_only_answers_found_in_the_passage_are_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NANO3_API_KEY", "secret")
    assert QuestionWriter(server.url, "", tmp_path).write(PASSAGE) == [
        ("What is the third word there (small)?", "gamma")
    ]
    assert server.keys == {"Bearer secret"}


def test_a_rerun_asks_nothing_again(server, tmp_path):
    first = QuestionWriter(server.url, "m", tmp_path).write(PASSAGE)
    assert QuestionWriter(server.url, "m", tmp_path).write(PASSAGE) == first
    assert server.requests == 1
    QuestionWriter(server.url, "other", tmp_path).write(PASSAGE)
    assert server.requests == 2


def test_failures_are_tried_again(server, tmp_path):
    server.failures = 3
    assert QuestionWriter(server.url + "/v1", "m", tmp_path, wait=0.01).write(PASSAGE)
    assert server.requests == 4


def test_lasting_failures_are_one_error_and_refusals_are_not_tried_again(server, tmp_path):
    server.failures = 99
    with pytest.raises(ValueError, match=r"no answer in 5 attempts \(HTTP 503"):
        QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    server.requests, server.status = 0, 401
    with pytest.raises(ValueError, match=r"refuses.*NANO3_API_KEY"):
        QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    assert server.requests == 1
    with pytest.raises(ValueError, match="no answer in 5 attempts"):
        QuestionWriter("127.0.0.1:9", "m", tmp_path, wait=0.01).write(PASSAGE)


@pytest.mark.parametrize(("content", "ended"), [(None, "length"), ("", "stop"), ("no list", "stop"), ("[{", "stop")])
def test_a_reply_that_is_cut_or_no_list_is_counted_and_not_kept(server, tmp_path, content, ended):
    server.content, server.ended = content, ended
    writer = QuestionWriter(server.url, "m", tmp_path)
    assert writer.write(PASSAGE) == []
    assert sum(n for reason, n in writer.dropped.items() if "cut off" in reason) == 1
    server.content, server.ended = None, "stop"
    assert QuestionWriter(server.url, "m", tmp_path).write(PASSAGE)


def test_a_server_of_no_use_is_asked_about_two_drafts_at_most(server, tmp_path, tokenizer, library):
    server.content = "no list"
    writer = QuestionWriter(server.url, "m", tmp_path)
    with pytest.raises(ValueError, match=r"no question could be written.*\d+ requests; dropped: \d+ replies"):
        DocumentTexts(TokenCounter.of(tokenizer), 3, PassageIndex(library), writer).make(0, 4000)
    assert 2 <= server.requests <= 2 * 8


def test_a_redirect_is_told_at_once(server, tmp_path):
    server.failures, server.status = 99, 307
    with pytest.raises(ValueError, match="redirects"):
        QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    assert server.requests == 1


def test_the_server_says_how_long_to_wait_and_the_deadline_how_long_at_most(server, tmp_path):
    server.failures, server.status, server.headers = 1, 429, {"Retry-After": "1"}
    begun = time.monotonic()
    assert QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    assert time.monotonic() - begun >= 1
    server.failures, server.requests, server.headers = 99, 0, {"Retry-After": "3600"}
    with pytest.raises(ValueError, match=r"no answer in 60 s .*asks to wait 3600 s"):
        QuestionWriter(server.url, "other", tmp_path, deadline=60).write(PASSAGE)
    assert server.requests == 1


def test_the_key_is_in_no_message(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NANO3_API_KEY", "sk-secret")
    server.failures, server.status, server.error = 99, 401, "unknown key sk-secret"
    with pytest.raises(ValueError, match=r"refuses.*\*\*\*") as error:
        QuestionWriter(server.url, "m", tmp_path).write(PASSAGE)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("NANO3_API_KEY", "sk-\nsecret")
    for url in (server.url, "http://me:secret@localhost:1", "localhost:1/v1?key=secret"):
        with pytest.raises(ValueError, match="NANO3_API_KEY") as error:
            QuestionWriter(url, "m", tmp_path)
        assert "secret" not in str(error.value)


def test_one_question_with_two_answers_is_not_asked(server, tmp_path, library):
    writer = QuestionWriter(server.url, "m", tmp_path)
    server.question = "Name word number 3."  # the same of every passage
    documents = Documents([d.name for d in library[1:12:2]], [d.text for d in library[1:12:2]])
    assert writer.ask(documents, 8, random.Random(0)) == []
    assert any("two answers" in reason for reason in writer.dropped)


def test_written_questions_stand_in_the_text_with_evidence_found_once(server, tmp_path, tokenizer, library):
    server.question = "Which word comes third after {passage:.40}?"
    writer = QuestionWriter(server.url, "m", tmp_path)
    made = DocumentTexts(TokenCounter.of(tokenizer), 3, PassageIndex(library), writer).make(0, 4000)
    assert made.questions
    for question in made.questions:
        assert question.kind == "written"
        assert question.answer in question.evidence[0]
        assert made.text.count(question.evidence[0]) == 1
        assert question.text in made.text


def test_what_occurs_twice_is_not_asked(server, tmp_path):
    text = "the same words stand here\n" * 20
    assert QuestionWriter(server.url, "m", tmp_path).ask(Documents(["a"], [text]), 4, random.Random(0)) == []
