"""Bodies: hostile ones cost little, and types are taken at their word."""

import pytest
from pydantic import ValidationError

from nano3.serve.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionRequest, {"prompt": [-1] * 10_000}),
        (CompletionRequest, {"prompt": [[-1] * 10_000] * 3}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 10_000}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(10_000)}}),
        (ChatRequest, {"messages": [{}] * 10_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 10_000}]}),
        (ChatRequest, {"messages": HELLO, "tools": [{}] * 10_000}),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * 10_000}]}),
        (DetokenizeRequest, {"tokens": [-1] * 10_000}),
    ],
)
def test_many_wrong_items_are_told_as_few(schema, body):
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    "body",
    [{"n": "2"}, {"n": True}, {"n": 1.5}, {"stream": "yes"}, {"temperature": "0"}, {"temperature": float("inf")},
     {"seed": 1 << 64}, {"tools": [{"type": "function", "function": {"name": "a<b"}}]}, {"stop": ["a"] * 65}],
)  # fmt: skip
def test_values_of_another_type_or_out_of_range_are_refused(body):
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": HELLO} | body)


def test_whole_numbers_are_fractions_too_and_unknown_fields_are_kept():
    body = ChatRequest.model_validate({"messages": [HELLO[0] | {"name": "Ann"}], "temperature": 0, "new": 1})
    assert body.temperature == 0
    assert body.messages[0].model_dump(exclude_unset=True) == HELLO[0] | {"name": "Ann"}


PART = {"type": "text", "text": "x"}
CALL = {"function": {"name": "f"}}


@pytest.mark.parametrize(
    "messages",
    [HELLO * 10_001, [{"role": "user", "content": [PART] * 5000}] * 2 + HELLO,
     [{"role": "assistant", "tool_calls": [CALL] * 10_000}]],
)  # fmt: skip
@pytest.mark.parametrize("schema", [ChatRequest, TokenizeRequest])
def test_too_many_messages_are_refused_before_each_is_read(schema, messages):
    with pytest.raises(ValidationError, match="at most 10000"):
        schema.model_validate({"messages": messages})
    schema.model_validate({"messages": HELLO * 10_000})
