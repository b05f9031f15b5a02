"""Preference pairs among the data sets of supervised fine-tuning."""

import io
import json

import pytest

from nano3.config.errors import UserError
from nano3.config.own_chats import chat_names, own_chats
from nano3.config.presets import load_sft
from nano3.data.chat.identity import rows_identity
from nano3.data.chat.sets import open_sets, set_records, set_sources, write_sets
from nano3.data.texts.skipped import Skipped

PAIR = {"prompt": "Hi", "response_1": "a", "response_2": "b", "score_1": 4, "score_2": 2, "ranking": 2,
        "analysis": "Response 1 greets."}  # fmt: skip


@pytest.fixture
def prefs(tmp_path):
    rows = [PAIR | {"prompt": f"Hi {i // 2}", "response_1": f"a{i}"} for i in range(40)]
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [PAIR | {"ranking": 9}, *rows]), "utf-8")
    return path


def config(*settings):
    return load_sft("tiny", ["data.generated_rows=20", "data.heldout_fraction=0.2", *settings])


def records(cfg):
    return [record for specs in set_sources(cfg.data).values() for record in set_records(specs, cfg.data, Skipped())]


def test_each_pair_shows_the_judge_both_orders(prefs):
    found = records(config(*own_chats([f"preferences:{prefs}"])))
    assert len(found) == 81
    assert found[0].value is None
    assert "ranking is 9" in found[0].problem
    one, other = found[1:3]
    assert [one.name, other.name] == ["prefs.jsonl:2", "prefs.jsonl swapped:2"]
    shown, said = one.value["messages"]
    assert shown["content"].index("\na0\n") < shown["content"].index("\nb\n")
    assert json.loads(said["content"]) == {"score_1": 4, "score_2": 2, "ranking": 2}
    assert other.value["messages"][1]["reasoning_content"] == "Response 2 greets."
    assert json.loads(other.value["messages"][1]["content"]) == {"score_1": 2, "score_2": 4, "ranking": 5}


def test_prompts_and_both_orders_are_on_one_side(prefs):
    for spec in (f"preferences:{prefs}", "generate:preferences"):
        sides = {True: set(), False: set()}
        for record in records(config(*own_chats([spec])))[1:]:
            text = record.value["messages"][0]["content"]
            sides[record.heldout].add(text.partition("<response_1>")[0])
        assert sides[True]
        assert sides[False]
        assert not sides[True] & sides[False]


def test_pairs_are_a_part_of_a_blend(prefs, tokenizer, tmp_path):
    cfg = config(
        "data.blend={preferences=1, count=1, mine=1}", f'data.sources={{mine=["preferences:{prefs}"]}}',
        "data.pack_length=2048",
    )  # fmt: skip
    rejects = io.StringIO()
    reports = write_sets(cfg, tokenizer, tmp_path / "rows", rejects, lambda line: None, processes=1)
    assert {report.name: report.rows + report.heldout for report in reports} == {
        "preferences": 24, "count": 24, "mine": 80,
    }  # fmt: skip
    (line,) = rejects.getvalue().splitlines()
    assert json.loads(line)["row"] == "prefs.jsonl:1"
    assert all(rows.heldout.any() for rows in open_sets(cfg.data, tmp_path / "rows").values())
    before = rows_identity(cfg, tokenizer)
    prefs.write_text(json.dumps(PAIR) + "\n", "utf-8")
    assert rows_identity(cfg, tokenizer) != before


def test_what_cannot_be_is_told_before_any_work(tmp_path):
    for spec, words in (
        ("preferences:nowhere.jsonl", "no file or folder at nowhere.jsonl"),
        ("preferences:hub:", "hub:ORG/NAME"),
        ("generate:preferences?tasks=talk", "cannot be judged by rule"),
        ("generate:preferences?level=3", "there is no option 'level'"),
    ):
        with pytest.raises(UserError, match=words):
            set_sources(config(*own_chats([spec])).data)


def test_data_sets_are_named_after_their_files():
    assert chat_names(["preferences:a/prefs.jsonl", "preferences:hub:nvidia/HelpSteer3:preference"]) == [
        "prefs", "HelpSteer3",
    ]  # fmt: skip
