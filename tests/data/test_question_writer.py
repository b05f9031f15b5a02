from __future__ import annotations

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nano3.data.document_questions import Documents
from nano3.data.document_texts import DocumentTexts
from nano3.data.lengths import TokenCounter
from nano3.data.passages import PassageIndex
from nano3.data.question_writer import QuestionWriter


class Server(ThreadingHTTPServer):
    """A server that asks for the third word of the passage, beside two answers that are no use."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.keys, self.failures, self.status = 0, set(), 0, 503

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
            return self.answer(server.status, {"error": "busy"})
        passage = body["messages"][0]["content"].split("<passage>\n")[1].split("\n</passage>")[0]
        pairs = [
            {"question": f"What is the third word there ({body['model']})?", "answer": passage.split()[2]},
            {"question": "What is not in the text at all?", "answer": "zzz"},
            {"question": "No answer"},
        ]
        self.answer(200, {"choices": [{"message": {"content": f"Here:\n```json\n{json.dumps(pairs)}\n```"}}]})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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
    with pytest.raises(ValueError, match=r"no answer in 5 attempts \(status 503"):
        QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    server.requests, server.status = 0, 401
    with pytest.raises(ValueError, match=r"refuses.*NANO3_API_KEY"):
        QuestionWriter(server.url, "m", tmp_path, wait=0.01).write(PASSAGE)
    assert server.requests == 1
    with pytest.raises(ValueError, match="no answer in 5 attempts"):
        QuestionWriter("127.0.0.1:9", "m", tmp_path, wait=0.01).write(PASSAGE)


def test_written_questions_stand_in_the_text_with_evidence_found_once(server, tmp_path, tokenizer, library):
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
