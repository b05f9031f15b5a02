"""What becomes of a tool call that the output's limit cuts off: nobody can take it for a whole one."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from nano3.data.chat.parsing.output_parser import OutputParser, ParsedOutput, ToolCall

PROPERTIES = {"text": {"type": "string"}, "count": {"type": "integer"}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": PROPERTIES}}}]
CALL = (
    "<tool_call>\n<function=f>\n<parameter=text>\nab\n</parameter>\n<parameter=count>\n7\n</parameter>\n"
    "</function>\n</tool_call>"
)
ARGUMENTS = '{"text": "ab", "count": 7}'


def calls(pieces: Iterable[str], cut_off: bool) -> list[ToolCall]:
    """The calls of an output that arrives like this."""
    parser, output = OutputParser(TOOLS, thinking_open=False, new_id=lambda: "id"), ParsedOutput()
    for piece in pieces:
        for delta in parser.push(piece):
            output.add(delta)
    for delta in parser.finish(cut_off):
        output.add(delta)
    return output.tool_calls


@pytest.mark.parametrize(
    ("end", "arguments"),
    [
        ("</function>", ARGUMENTS),
        ("</function>\n</tool_c", ARGUMENTS),
        ("7\n</parameter>\n", '{"text": "ab", "count": 7'),
        ("7", '{"text": "ab", "count": '),
        ("<parameter=count>\n", '{"text": "ab", "count": '),
        ("ab\n</parameter>", '{"text": "ab'),
        ("<parameter=text>\na", '{"text": "a'),
        ("<parameter=text>\n", '{"text": "'),
        ("<parameter=te", "{"),
        ("<function=f>", "{"),
    ],
)
def test_arguments_end_where_they_were_cut(end: str, arguments: str) -> None:
    (call,) = calls([CALL[: CALL.rindex(end) + len(end)]], cut_off=True)
    assert (call.name, call.arguments) == ("f", arguments)


@pytest.mark.parametrize("length", range(len(CALL) + 1))
def test_wherever_it_is_cut_it_reads_as_json_only_when_it_is_whole(length: int) -> None:
    text = CALL + "\n" + CALL[:length]
    cut = calls([text], cut_off=True)
    assert calls(text, cut_off=True) == cut
    assert cut[0].arguments == ARGUMENTS
    for call, completed in zip(cut, calls([text], cut_off=False), strict=True):
        assert completed.arguments.startswith(call.arguments)
    if len(cut) == 2 and "</function>" not in CALL[:length]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(cut[1].arguments)
