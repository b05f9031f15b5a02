"""Chat records, texts, presets and a server's answers: read, or told in one line."""

from __future__ import annotations

import io
import json
from copy import deepcopy

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from nano3.client.attempts import NoAnswerError
from nano3.client.replies import error_text, listed_models, seconds_of
from nano3.client.server import Server
from nano3.config import presets
from nano3.data.chat.conversation import read_conversation
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.records import read_records
from nano3.data.texts.find import find_files
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.sources import read_blend_file
from nano3.engine.launch import small_tokenizer
from tests.fuzz.inputs import damaged, files, fuzz, works_or_tells

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
TURNS = [
    {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]},
    {"role": "assistant", "content": "<think>r</think>a", "reasoning_content": "r", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "t"}, {"role": "assistant", "content": "b"},
]  # fmt: skip
CHATS = [
    {"messages": TURNS, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": True}},
    {"prompt": "p", "completion": [{"role": "assistant", "content": "c"}]},
    {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "system": "s"},
    {"messages": json.dumps(TURNS), "tools": json.dumps([TOOL])},
]
STAGES = {"pretrain": presets.load_pretrain, "extend-context": presets.load_extend_context, "sft": presets.load_sft,
          "rlvr": presets.load_rlvr, "models": presets.load_model}  # fmt: skip
TOML_ODD = [0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\0", True, [], [[]], [0], {}, {"a": {"b": 1}}]


@pytest.fixture(scope="module")
def encoder():
    return ChatEncoder(small_tokenizer(600))


@fuzz(10)
@given(data=st.sampled_from(CHATS).flatmap(files))
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_chat_records(tmp_path_factory, encoder, suffix, data):
    file = tmp_path_factory.getbasetemp() / f"chat.{suffix}"
    file.write_bytes(data)
    with works_or_tells(f"chat {suffix}"):
        for record in read_records(str(file), Skipped()):
            if record.value is not None:
                with works_or_tells("chat conversations"):
                    found = read_conversation(record.value, record.name)
                    encoder.encode(found.messages, found.tools, **found.variables)


@fuzz(10)
@given(data=st.data())
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "txt", "jsonl.gz", "txt.zst"])
def test_texts(tmp_path_factory, suffix, data):
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["a b c"] * 5, "n": list(range(5))}), table)
    content = files({"text": "a b c", "n": 1}) if "parquet" not in suffix else damaged(table.getvalue())
    file = tmp_path_factory.getbasetemp() / f"texts.{suffix}"
    file.write_bytes(data.draw(content))
    with works_or_tells(f"texts {suffix}"):
        for found in find_files(str(file), Skipped()):
            list(found.documents(Skipped()))


@fuzz(10)
@given(data=files({"web": ["a.txt", "b.jsonl:text"], "code": ["c/"]}))
def test_blends(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "blend.json"
    file.write_bytes(data)
    with works_or_tells("blends"):
        read_blend_file(file)


@fuzz(10)
@given(data=st.data())
@pytest.mark.parametrize("kind", STAGES)
def test_presets(tmp_path_factory, kind, data):
    table = presets._settings(STAGES[kind]("tiny"))
    odd = st.sampled_from(TOML_ODD)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from([*table]))
        if isinstance(table[name], dict) and table[name] and data.draw(st.booleans()):
            table[name][data.draw(st.sampled_from([*table[name]]))] = deepcopy(data.draw(odd))
        else:
            table[name] = deepcopy(data.draw(odd))
    text = tomli_w.dumps(_without_none(table)).encode()
    file = tmp_path_factory.getbasetemp() / f"{kind}.toml"
    file.write_bytes(data.draw(st.just(text) | damaged(text)))
    with works_or_tells(f"presets {kind}", file.name):
        STAGES[kind](str(file))


def _without_none(table):
    return {key: _without_none(value) if isinstance(value, dict) else value
            for key, value in table.items() if value is not None}  # fmt: skip


@fuzz(10)
@given(data=st.data())
@pytest.mark.parametrize("kind", STAGES)
def test_set(kind, data):
    table = presets._settings(STAGES[kind]("tiny"))
    names = [f"{name}.{key}" if key else name for name, value in table.items()
             for key in (value if isinstance(value, dict) else [""])]  # fmt: skip
    value = st.sampled_from(["", "1", "-1", "nan", "1e400", "9" * 5000, "[", "[" * 5000, "{a=1}", '"', "\0", "true",
                             "[1, 'x']", "\ud800", "x=y", "{", "1979-05-27", "''", "[[]]"])  # fmt: skip
    value |= st.text(max_size=8)
    name = data.draw(st.sampled_from(names) | st.text(max_size=8))
    with works_or_tells(f"--set {kind}"):
        STAGES[kind]("tiny", [f"{name}={data.draw(value)}"])


MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 5}]}
ANSWERS = [MODELS, {"error": {"message": "no", "type": "t"}}, {"detail": [{"loc": ["body"], "msg": "m"}]}]


@fuzz(10)
@given(body=st.sampled_from(ANSWERS).flatmap(files), status=st.sampled_from([200, 204, 302, 400, 401, 404, 429, 500]),
       header=st.text(st.characters(max_codepoint=127), max_size=9))  # fmt: skip
def test_a_server_with_odd_answers(body, status, header):
    error_text(body, "a-key"), seconds_of(header)
    server = Server("http://127.0.0.1:9", wait=lambda _: True)
    server.http = httpx2.Client(
        base_url="http://127.0.0.1:9",
        transport=httpx2.MockTransport(lambda _: httpx2.Response(status, content=body, headers={"retry-after": "1"})),
    )
    with works_or_tells("a server's answers"):
        try:
            reply = server.request("GET", "/v1/models")
            server.error_text(reply)
            listed_models(reply.json())
            server.find_model("m")
        except NoAnswerError:
            pass
