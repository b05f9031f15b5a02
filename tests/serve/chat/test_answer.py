"""Answers put together from updates that a random model would never write."""

import types

import pytest

from nano3.data.chat.encoder import ChatPrompt
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Request, Token, Update
from nano3.serve.chat.answer import ChatAnswer
from nano3.serve.chat.prompt import ChatPlan
from nano3.serve.tokens import TokenTexts

TOOLS = [{"type": "function", "function": {"name": "now"}}]
CALL = "<tool_call>\n<function=now>\n</function>\n</tool_call>"


def answer(tokenizer: Tokenizer, text: str, finish="stop", thinking_open=True, one_call=False, pieces=3):
    """The choice, the deltas and the number of reasoning tokens for an output that arrives in pieces."""
    service = types.SimpleNamespace(tokenizer=tokenizer, texts=TokenTexts(tokenizer))
    plan = ChatPlan(Request("a", (1,)), ChatPrompt((1,), thinking_open), TOOLS, one_call)
    grown = ChatAnswer(service, plan, with_logprobs=False, with_ids=False)  # type: ignore[arg-type]
    ids = tokenizer.encode(text)
    deltas = []
    for start in range(0, len(ids), pieces):
        part = ids[start : start + pieces]
        end = finish if start + pieces >= len(ids) else None
        tokens = tuple(Token(i, -1.0, -1.0) for i in part)
        deltas += [chunk["delta"] for chunk in grown.add(Update("a", 0, tokens, tokenizer.decode(part), end))]
    return grown.choice(), deltas, grown.reasoning_tokens


def test_a_call_after_thinking(tokenizer):
    choice, deltas, counted = answer(tokenizer, f"Which time?\n</think>\n{CALL}")
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"].strip() == "Which time?"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert counted == len(tokenizer.encode("Which time?\n</think>"))
    assert [call["id"] for delta in deltas for call in delta.get("tool_calls", []) if "id" in call] == [
        choice["message"]["tool_calls"][0]["id"]
    ]


def test_a_call_cut_off_by_the_length_is_no_finished_call(tokenizer):
    choice, *_ = answer(tokenizer, f"</think>\n{CALL}", finish="length")
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{}"
    cut = CALL[: CALL.index("</function>")]
    choice, deltas, _ = answer(tokenizer, f"</think>\n{cut}", finish="length")
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{"
    parts = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(parts) == "{"


@pytest.mark.parametrize(("one_call", "calls"), [(True, 1), (False, 2)])
def test_only_the_first_call_counts_where_one_is_wanted(tokenizer, one_call, calls):
    choice, deltas, _ = answer(tokenizer, f"{CALL}\n{CALL}", thinking_open=False, one_call=one_call)
    assert len(choice["message"]["tool_calls"]) == calls
    assert {call["index"] for delta in deltas for call in delta.get("tool_calls", [])} == set(range(calls))


def test_nothing_counts_after_the_one_call_that_is_wanted(tokenizer):
    service = types.SimpleNamespace(tokenizer=tokenizer, texts=TokenTexts(tokenizer))
    plan = ChatPlan(Request("a", (1,)), ChatPrompt((1,), False), TOOLS, True)
    grown = ChatAnswer(service, plan, with_logprobs=False, with_ids=False)  # type: ignore[arg-type]
    token = Token(9, -1.0, -1.0)
    grown.add(Update("a", 0, (token,), CALL))
    assert not grown.ended
    (*_, last) = grown.add(Update("a", 0, (token,), f"\n{CALL}"))
    assert grown.ended
    assert last["finish_reason"] == "tool_calls"
    assert grown.add(Update("a", 0, (token,), "more", "length")) == []
    choice = grown.choice()
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")
    assert grown.output_tokens == 2


def test_reasoning_tokens_end_where_a_call_ends_the_thinking_unsaid(tokenizer):
    choice, _, counted = answer(tokenizer, f"Which time?\n{CALL}\n{CALL}\n{CALL}", pieces=1)
    assert choice["message"]["reasoning"].strip() == "Which time?"
    assert len(tokenizer.encode("Which time?\n")) <= counted <= len(tokenizer.encode(f"Which time?\n{CALL}")) + 1


def test_thinking_that_the_model_opens_itself_is_counted(tokenizer):
    choice, _, counted = answer(tokenizer, "<think>\nWhich time?\n</think>\nNoon.", thinking_open=False, pieces=1)
    assert choice["message"]["reasoning"].strip() == "Which time?"
    assert choice["message"]["content"].strip() == "Noon."
    assert counted == len(tokenizer.encode("<think>\nWhich time?\n</think>"))
