"""Forms that no output can have are the request's fault: 400, never 500."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nano3.engine.engine import Engine
from nano3.engine.request import Update

OVERLAP = {
    "type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"],
    "additionalProperties": False, "patternProperties": {"^score$": {"type": "integer"}},
}  # fmt: skip
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False, "max_tokens": 60}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": r"[^\s\S]"}, "guided_regex"),
        ({"guided_json": OVERLAP}, "guided_json"),
        ({"guided_grammar": "start: A\nA: /a/ & /b/"}, "guided_grammar"),
        ({"structured_outputs": {"regex": r"a[^\s\S]"}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array", "items": OVERLAP}}}},
         "response_format"),
        ({"tool_choice": "required",
          "tools": [{"type": "function", "function": {"name": "f", "parameters": {
              "type": "object", "properties": {"o": OVERLAP}, "required": ["o"]}}}]}, "tools"),
    ],
)  # fmt: skip
def test_before_anything_is_written(client: Any, fields: dict[str, Any], param: str | None, stream: bool) -> None:
    response = client.post("/v1/chat/completions", json=HELLO | fields | {"stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "cannot be enforced" in error["message"]


class DeadEnd(Engine):
    """Its grammars end after three tokens, as one of a kind that no check knows would."""

    def step(self) -> list[Update]:
        """The engine's own step, then the dead end."""
        for sequence in self._scheduler.running:
            grammar = sequence.sampler.grammar
            if grammar is not None and sequence.n_output == 3:
                grammar._matcher.consume_token(0)
        return super().step()


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_dead_end_later_names_the_form(start: Any, make_engine: Any, path: str) -> None:
    client = start(make_engine(DeadEnd)).client()
    body = (HELLO if path.startswith("chat") else {"prompt": "Hi", "max_tokens": 60}) | {"guided_regex": "[ab]{30}"}
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "guided_regex", "dead_end")
    assert error["message"].startswith("the regular expression cannot be met to its end: ")
    with client.stream("POST", f"/v1/{path}", json=body | {"stream": True}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert events[-1]["error"] == error
    assert "choices" in events[0]
