"""Records of chat data sets as conversations."""

import json

import pytest

from nano3.data.chat.conversation import FORM, RowError, read_conversation
from nano3.data.chat.structure import EMPTY, ROLES, TAGS, TOOLS, check_structure

ASK, SAY = {"role": "user", "content": "one and one?"}, {"role": "assistant", "content": "two"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def call(*ids):
    calls = [{"id": one, "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(one="c1"):
    return {"role": "tool", "tool_call_id": one, "content": "2"}


def said(record):
    return [(m["role"], m["content"], m.get("reasoning_content")) for m in read_conversation(record, "x:1").messages]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASK, {**SAY, "reasoning_content": "a sum"}]},
        {"messages": json.dumps([ASK, {**SAY, "reasoning": "a sum", "tool_calls": None}])},
        {"prompt": "one and one?", "completion": "<think>\na sum\n</think>\n\ntwo"},
        {"prompt": [ASK], "completion": [{**SAY, "content": "<think>a sum</think>two"}]},
        {"conversations": [{"from": "human", "value": "one and one?"},
                           {"from": "gpt", "value": "<think>a sum</think>two"}]},
        {"instruction": "one and one?", "input": "", "output": "<think>a sum</think>two"},
        {"conversations": [{"role": "user", "content": [{"type": "text", "text": "one and one?"}]},
                           {**SAY, "reasoning_content": "a sum"}]},
    ],
)  # fmt: skip
def test_every_form_gives_the_same_conversation(record):
    assert said(record) == [("user", "one and one?", None), ("assistant", "two", "a sum")]


def test_a_system_text_beside_the_turns_comes_first_and_empty_reasoning_is_none():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<think></think>yo"}]
    record = {"system": "Be brief.", "conversations": turns}
    assert said(record) == [("system", "Be brief.", None), ("user", "hi", None), ("assistant", "yo", None)]


def test_the_input_of_an_alpaca_record_follows_its_instruction():
    record = {"instruction": "Translate.", "input": "chat", "output": "cat", "system": "Be brief."}
    assert said(record) == [
        ("system", "Be brief.", None),
        ("user", "Translate.\n\nchat", None),
        ("assistant", "cat", None),
    ]


def test_sharegpt_calls_and_observations_are_tool_calls_and_results():
    called = '{"name": "add", "arguments": {"a": 1}}'
    turns = [("human", "add"), ("function_call", called), ("observation", "2"), ("gpt", "two")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": json.dumps([TOOL])}
    conversation = read_conversation(record, "x:1")
    check_structure(conversation)
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert conversation.tools == [TOOL]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "hello"}, "no instruction with an output; fields there: text"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "[{"}, "Expecting"),
        ({"messages": [ASK, SAY], "tools": "[" * 5000}, "nested too deeply"),
        ({"messages": ["hi"]}, r"messages\[0\] is no object"),
        ({"messages": [{"role": "alien", "content": "hi"}]}, "role is 'alien'"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "is not JSON"),
        ({"conversations": [{"from": "alien", "value": "hi"}]}, "from is 'alien'; known: human"),
        ({"messages": [ASK, SAY], "tools": [{"name": ""}]}, r"tools\[0\] names no function"),
        ({"messages": [ASK, SAY], "chat_template_kwargs": "x"}, "chat_template_kwargs is no object"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_reason(record, words):
    with pytest.raises(RowError, match=words) as error:
        read_conversation(record, "x:1")
    assert error.value.reason == FORM


@pytest.mark.parametrize(
    ("messages", "reason", "words"),
    [
        ([SAY], ROLES, "assistant comes first; user may"),
        ([ASK], ROLES, "there is no answer to learn"),
        ([ASK, SAY, SAY], ROLES, r"messages\[2\]: assistant follows assistant"),
        ([ASK, ASK, SAY], ROLES, r"messages\[1\]: user follows user"),
        ([ASK, result(), SAY], ROLES, "tool follows user"),
        ([ASK, call("c1"), ASK, SAY], ROLES, "user follows a tool call; tool may"),
        ([ASK, call("c1"), result(), result("c2"), SAY], TOOLS, "makes 1 tool calls and has 2 results"),
        ([ASK, call("c1", "c2"), result(), SAY], TOOLS, "makes 2 tool calls and has 1 results"),
        ([ASK, call("c1"), result("c9"), SAY], TOOLS, "are not the ids of its calls"),
        ([ASK, {**SAY, "content": "<think>what"}], TAGS, r"messages\[1\].content holds <think>"),
        ([ASK, {**SAY, "content": "what</think>two"}], TAGS, "holds </think>"),
        ([ASK, {**SAY, "content": "<think>a</think>b<think>c</think>d"}], TAGS, "holds <think>"),
        ([ASK, {**SAY, "reasoning_content": "so </think> then"}], TAGS, "reasoning_content holds </think>"),
        ([ASK, {**SAY, "content": "  "}], EMPTY, "says nothing"),
        ([ASK, {**SAY, "content": "<think>only this</think>"}], EMPTY, "says nothing"),
    ],
)  # fmt: skip
def test_a_conversation_that_no_assistant_has_had_is_refused(messages, reason, words):
    with pytest.raises(RowError, match=words) as error:
        check_structure(read_conversation({"messages": messages, "tools": [TOOL]}, "x:1"))
    assert error.value.reason == reason


def test_calls_without_definitions_are_refused():
    messages = [ASK, call("c1"), result(), SAY]
    check_structure(read_conversation({"messages": messages, "tools": [TOOL]}, "x:1"))
    for tools in ([], [{"name": "sub"}]):
        with pytest.raises(RowError, match=r"calls add, which is not among the tools: (none|sub)"):
            check_structure(read_conversation({"messages": messages, "tools": tools}, "x:1"))


def test_system_messages_may_stand_anywhere_and_a_conversation_may_end_with_a_call():
    messages = [{"role": "developer", "content": "x"}, ASK, SAY, {"role": "system", "content": "y"}, ASK, call("c1")]
    check_structure(read_conversation({"messages": messages, "tools": [TOOL]}, "x:1"))
