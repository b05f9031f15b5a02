"""Filters of conversations."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.curate.pipeline import load_pipeline
from nano3.curate.report import kept_samples
from nano3.curate.run import plan_run, run_pipeline
from nano3.data.chat.records import read_records
from nano3.data.texts.skipped import Skipped

from ..conftest import documents, dropped

LONG = "the same sixteen words are said again and again by a model that does not stop here "
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def asked(answer, **more):
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **more}]}


def bad_conversations():
    user, result = {"role": "user", "content": "q"}, {"role": "tool", "content": "3", "tool_call_id": "1"}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    end = {"role": "assistant", "content": "three"}
    return {
        "orphan result": {"messages": [user, result, end], "tools": [TOOL]},
        "no definition": {"messages": [user, called, result, end]},
        "order": {"messages": [user, user, end]},
        "no answer": {"messages": [user]},
        "empty": asked(" "),
        "tags": asked("a </think> b"),
        "window": asked(LONG * 6),
        "trace": asked("".join(f"{LONG}{' '.join(f'w{i}x{j}' for j in range(1100))} " for i in range(18))),
        "pattern": asked("We love our great nation above all."),
        "no conversation": {"something": "else"},
    }


def good_conversations(n=1000):
    table = "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 12
    kinds = [
        lambda i: asked(f"Answer {i}: let me check. Let me check again. It is {i}."),
        lambda i: asked(f"Table {i}:\n{table}"),
        lambda i: asked(f"```python\nfor i in range({i}):\n    print(i)\n```", reasoning_content="let me check " * 3),
        lambda i: {
            "messages": [
                {"role": "user", "content": f"add {i}"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": str(i), "tool_call_id": "1"},
                {"role": "assistant", "content": f"It is {i}."},
            ],
            "tools": [TOOL],
        },
    ]
    return [{"id": f"good{i}", **kinds[i % 4](i)} for i in range(n)]


def test_every_defect_is_dropped_and_no_clean_conversation(tmp_path):
    rows = good_conversations() + [{"id": name, **one} for name, one in bad_conversations().items()]
    rows.append(dict(rows[0]))
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run_pipeline(plan_run(load_pipeline("sft-filter"), tmp_path / "out", [str(tmp_path / "chats.jsonl")]), 1)
    assert documents(tmp_path / "out") == good_conversations(), "as they went in"
    assert dropped(report, "sft-structure") == {
        "roles out of order": 3, "tool calls": 1, "empty answer": 1, "thinking tags": 1, "no conversation": 1,
    }  # fmt: skip
    assert dropped(report, "sft-filters") == {"repetition in a window": 1, "repetition over a trace": 1, "pattern": 1}
    assert dropped(report, "exact-dedup") == {"duplicate": 1}
    assert len(list(read_records(str(tmp_path / "out"), Skipped()))) == 1000, "nano3 sft reads the folder"
    ((name, line),) = kept_samples(report, 1)
    assert (name, line[:14]) == ("00000.jsonl.zst:1", json.dumps(rows[0])[:14]), "a sample is the record"


def test_a_text_is_no_conversation(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    pipeline = load_pipeline("sft-filter")
    with pytest.raises(UserError, match=r"notes.txt: conversations come as \.jsonl"):
        run_pipeline(plan_run(pipeline, tmp_path / "out", [str(tmp_path / "notes.txt")]), 1)
