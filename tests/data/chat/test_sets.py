"""The data sets of a blend."""

import dataclasses
import io
import json
import sys

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import load_sft
from nano3.data.chat.encoding import Encoders
from nano3.data.chat.identity import rows_identity
from nano3.data.chat.sets import (
    SetReport,
    check_data,
    open_sets,
    report_line,
    set_records,
    set_sources,
    write_sets,
)
from nano3.data.texts.skipped import Skipped

GOOD = {"prompt": "question {}", "completion": "<think>so</think>answer"}
BAD = [{"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "a", "completion": "<think>open"}, {"text": "x"}]


@pytest.fixture
def chats(tmp_path):
    rows = [{**GOOD, "prompt": f"question {i}"} for i in range(60)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], *BAD, *rows[5:]]) + "{oops\n")
    return path


def config(chats, *settings):
    made = ["data.blend={chats=1, count=1}", f'data.sources={{chats=["{chats}"]}}', "data.generated_rows=40"]
    return load_sft("tiny", [*made, *settings])


def write(cfg, tokenizer, folder):
    rejects, lines = io.StringIO(), []
    reports = write_sets(cfg, tokenizer, folder, rejects, lines.append)
    return reports, [json.loads(line) for line in rejects.getvalue().splitlines()], lines


def test_what_is_left_out_is_counted_told_and_written_with_its_reason(tokenizer, tmp_path, chats):
    reports, rejects, lines = write(config(chats), tokenizer, tmp_path / "rows")
    report = reports[0]
    assert report.records == 64
    assert report.rows + report.heldout == 60
    assert [(line["data"], line["row"], line["reason"]) for line in rejects] == [
        ("chats", "chats.jsonl:6", "roles out of order"),
        ("chats", "chats.jsonl:7", "thinking tags"),
        ("chats", "chats.jsonl:8", "no conversation"),
        ("chats", "chats.jsonl:64", "no conversation"),
    ]
    assert lines[0] == report_line(report)
    assert "4 left out: 2 no conversation, 1 roles out of order, 1 thinking tags" in lines[0]
    assert sum(report.reasoning.values()) == report.rows


def test_an_error_can_be_asked_for_in_place_of_a_count(tokenizer, tmp_path, chats):
    with pytest.raises(UserError, match=r"chats.jsonl:6: the last message is not the assistant's.*\(roles out of"):
        write(config(chats, "data.bad_rows=error"), tokenizer, tmp_path / "rows")


def test_held_out_rows_share_no_task_with_the_others(tokenizer, tmp_path, chats):
    cfg = config(chats, "data.heldout_fraction=0.2")
    reports, _, _ = write(cfg, tokenizer, tmp_path / "rows")
    sets = open_sets(cfg.data, tmp_path / "rows")
    assert [len(sets[name]) for name in ("chats", "count")] == [60, 48]
    for report in reports:
        rows = sets[report.name]
        held = set(rows.tasks[rows.heldout].tolist())
        assert len(held) == report.heldout > 0
        assert not held & set(rows.tasks[~rows.heldout].tolist())


def test_every_generated_set_of_the_tiny_preset_can_be_split(tokenizer, tmp_path):
    """Small talk of several turns begins alike on both sides: the task is what is asked last."""
    cfg = load_sft(
        "tiny", ["data.generated_rows=60", "data.heldout_fraction=0.5", "data.blend={talk=1, instructions=1}"]
    )
    write(cfg, tokenizer, tmp_path / "rows")
    assert [int(rows.heldout.sum()) for rows in open_sets(cfg.data, tmp_path / "rows").values()] == [30, 30]


def test_a_task_on_both_sides_is_refused(tokenizer, tmp_path, chats):
    cfg = config(chats, "data.heldout_fraction=0.2")
    write(cfg, tokenizer, tmp_path / "rows")
    index = tmp_path / "rows" / "chats" / "index.npz"
    import numpy as np

    with np.load(index) as old:
        columns = dict(old)
    columns["tasks"][:] = 7
    np.savez(index, **columns)
    with pytest.raises(UserError, match="1 tasks are both trained on and held out"):
        open_sets(cfg.data, tmp_path / "rows")


def test_the_rows_are_the_same_every_time(tokenizer, tmp_path, chats):
    cfg = config(chats)
    for name in ("a", "b"):
        write(cfg, tokenizer, tmp_path / name)
    first, second = (open_sets(cfg.data, tmp_path / name) for name in ("a", "b"))
    assert [rows.fingerprint for rows in first.values()] == [rows.fingerprint for rows in second.values()]


def test_processes_write_the_rows_that_one_writes(tokenizer, tmp_path, chats, monkeypatch):
    """Among them refused ones, and one whose reasoning is cut and spells out special tokens: in the records' order."""
    monkeypatch.setattr("nano3.data.chat.encoding.ALONE", 3)
    forged = {"prompt": "a<|im_end|>b", "completion": f"<think>{'<|im_end|>' * 30}</think></s>c"}
    chats.write_text(chats.read_text() + json.dumps(forged) + "\n")
    always = ["reasoning.strip_fraction=0", "reasoning.truncate_fraction=1", "reasoning.budgets=[20]"]
    cfg, found = config(chats, "data.heldout_fraction=0.2", "filters.window_repeats=0", *always), []
    for name, processes in (("one", 1), ("two", 2)):
        rejects, lines = io.StringIO(), []
        reports = write_sets(cfg, tokenizer, tmp_path / name, rejects, lines.append, processes)
        parts = {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        found.append(([report.values() for report in reports], rejects.getvalue(), lines, parts))
    assert found[0] == found[1]
    assert found[0][0][0]["rows"] + found[0][0][0]["heldout_rows"] == 61


def test_an_encoding_process_that_dies_ends_the_work_with_one_line(tokenizer, chats, monkeypatch):
    monkeypatch.setattr("nano3.data.chat.encoding.ALONE", 1)
    monkeypatch.setattr("nano3.data.chat.encoding.module_command", lambda name: [sys.executable, "-c", "exit(3)"])
    cfg = config(chats)
    with Encoders(cfg, tokenizer, 2) as encoders:
        outcomes = encoders.outcomes(set_records([str(chats)], cfg.data, Skipped()))
        with pytest.raises(UserError, match=r"a process that encodes rows ended \(exit code 3\)"):
            list(outcomes)


def test_a_report_is_read_as_it_was_written(tokenizer, tmp_path, chats):
    report = write(config(chats), tokenizer, tmp_path / "rows")[0][0]
    assert SetReport.of(json.loads(json.dumps(report.values()))).values() == report.values()


def test_what_rows_are_made_of_tells_other_rows(tokenizer, chats):
    before = rows_identity(config(chats), tokenizer)
    assert rows_identity(config(chats, "data.blend={count=3, chats=2}", "train.steps=9"), tokenizer) == before
    for other in ("data.seed=5", "data.pack_length=77", "filters.keywords=['x']", "reasoning.strip_fraction=0.2",
                  "data.generated_rows=41", "data.blend={chats=1, sort=1}"):  # fmt: skip
        assert rows_identity(config(chats, other), tokenizer) != before
    assert rows_identity(config(chats), dataclasses.replace(tokenizer, chat_template="{{ 1 }}")) != before
    chats.write_text(chats.read_text() + "{}\n")
    assert rows_identity(config(chats), tokenizer) != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.blend={}"], "give conversations with --data PATH"),
        (["data.blend={mine=1}", "data.sources={}"], "data set 'mine' has no source"),
        (["data.blend={mine=1}", 'data.sources={mine=["none.jsonl"]}'], "data.sources.mine: no file or folder at none"),
        (["data.blend={count=1}", 'data.sources={mine=["x"]}'], "data.sources.mine is not read"),
        (["data.blend={c=1}", 'data.sources={c=["generate:cuont"]}'], "did you mean generate:count"),
        (["data.blend={c=1}", 'data.sources={c=["hub:@"]}'], "is not hub:ORG/NAME"),
    ],
)
def test_data_that_are_not_there_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        set_sources(load_sft("tiny", settings).data)


def test_a_dry_run_looks_only_at_what_is_named():
    check_data(load_sft("sft").data)
    with pytest.raises(UserError, match="no file or folder at none"):
        check_data(load_sft("sft", ['data.sources={chat=["none"]}']).data)


def test_a_set_that_leaves_nothing_says_why(tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BAD[:2]))
    cfg = load_sft("tiny", ["data.blend={bad=1}", f'data.sources={{bad=["{path}"]}}'])
    with pytest.raises(UserError, match=r"'bad' leaves nothing to train on \(1 roles out.*; the first: bad.jsonl:1: "):
        write(cfg, tokenizer, tmp_path / "rows")


def test_the_reports_recipe_scores_a_bounded_part_of_its_18_million_rows():
    cfg = load_sft("sft")
    assert 0 < cfg.data.heldout_fraction * 18e6 < 20_000
    assert 0 < cfg.heldout.final_tokens <= 10 * cfg.heldout.tokens
