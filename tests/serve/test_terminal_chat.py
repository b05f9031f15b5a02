"""`nano3 chat --url` talks to the real server."""

from __future__ import annotations

import io
import sys

import pytest

from nano3.cli.app import main


def test_a_piped_conversation_gets_the_servers_answers(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nagain\n"))
    options = ["--no-thinking", "--max-tokens", "12", "--temperature", "0"]
    with pytest.raises(SystemExit) as end:
        main(["chat", "--url", server.url, *options])
    assert not end.value.code
    messages = []
    with server.client() as client:
        for text in ("hello", "again"):
            messages.append({"role": "user", "content": text})
            body = {"model": server.model, "messages": messages, "max_tokens": 12, "temperature": 0}
            answer = client.post("/v1/chat/completions", json=body | {"enable_thinking": False}).json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    answers = [message["content"] for message in messages[1::2]]
    assert capsys.readouterr().out == "".join(text if text.endswith("\n") else text + "\n" for text in answers)
