"""A result folder survives kills, refuses other settings, and never holds a sample twice."""

from __future__ import annotations

import json

import pytest

from nano3.config.errors import UserError
from nano3.eval.store import Result, Score, Store, default_folder, mend_samples, open_store, read_samples

SETTINGS = {"model": "m", "samples": 3, "seed": 0, "sources": {"essays": "corpus"}}


def row(index: int, **more: object) -> dict:
    return {"task": "vt", "length": 4096, "index": index, "score": 1.0, **more}


def fill(folder, *indices: int) -> None:
    with open_store(folder, SETTINGS) as store:
        for index in indices:
            store.add(row(index))


def test_what_is_there_is_found_again(tmp_path):
    fill(tmp_path / "a", 0, 1)
    with open_store(tmp_path / "a", SETTINGS) as store:
        assert [key[2] for key in store.rows] == [0, 1]
        store.add(row(1, score=0.0))
        store.add(row(2))
    lines = (tmp_path / "a" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[1])["score"] == 1.0


@pytest.mark.parametrize("torn", ['{"task": "vt", "len', json.dumps(row(0)), '{"task": "vt"}\n', "\n", "\x00\x00\n"])
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path, torn):
    fill(tmp_path, 0, 1)
    file = tmp_path / "samples.jsonl"
    whole = file.read_text()
    file.write_text(whole + torn)
    assert len(read_samples(file)) == 2
    with open_store(tmp_path, SETTINGS) as store:
        assert len(store.rows) == 2
        assert file.read_text() == whole
        store.add(row(2))
    assert len(file.read_text().splitlines()) == 3


def test_a_wrong_line_in_the_middle_is_named(tmp_path):
    fill(tmp_path, 0, 1)
    file = tmp_path / "samples.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\nnonsense\n{second}\n")
    with pytest.raises(UserError, match=r"samples.jsonl, line 2: .*remove the line"):
        mend_samples(file)


def test_other_settings_are_refused_by_name(tmp_path):
    fill(tmp_path, 0)
    other = {**SETTINGS, "sources": {"essays": "my/texts"}}
    with pytest.raises(UserError, match=r"\(sources\.essays: corpus -> my/texts\): give another --out"):
        open_store(tmp_path, other).__enter__()
    with open_store(tmp_path, {**SETTINGS, "samples": 9}, growing=("samples",)) as store:
        assert len(store.rows) == 1


def test_an_evaluation_that_answers_nothing_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()

    def fail(folder, *rows):
        with open_store(folder, SETTINGS) as store:
            for one in rows:
                store.add(one)
            store.finish(Result("ruler", "ruler-offline", "m", False, SETTINGS, []))
            raise UserError("stop")

    for folder in (tmp_path / "a" / "b", tmp_path / "empty"):
        with pytest.raises(UserError, match="stop"):
            fail(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(UserError, match="stop"):
        fail(tmp_path / "a", row(0))
    with pytest.raises(UserError, match="stop"):
        fail(tmp_path / "a")
    assert len(read_samples(tmp_path / "a" / "samples.jsonl")) == 1


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    with open_store(tmp_path, SETTINGS), pytest.raises(UserError, match="in use by another process"):
        open_store(tmp_path, SETTINGS).__enter__()


def test_the_default_folder_is_the_one_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_folder("eval-x", SETTINGS)
    fill(first, 0)
    assert default_folder("eval-x", SETTINGS) == first
    assert default_folder("eval-x", {**SETTINGS, "seed": 1}).name == "eval-x-2"


def test_a_result_is_whole(tmp_path):
    with open_store(tmp_path, SETTINGS) as store:
        scores = [Score("vt", 4096, "string_match_all", 50.0, 1.0, 3)]
        store.finish(Result("ruler", "ruler-offline", "m", True, SETTINGS, scores, ["a note"], {"more": 1}))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["scores"][0] == {
        "task": "vt", "length": 4096, "metric": "string_match_all", "value": 50.0, "stderr": 1.0, "n": 3,
        "higher_is_better": True, "low": None, "high": None,
    }  # fmt: skip
    assert (result["kind"], result["complete"], result["notes"], result["more"]) == ("ruler", True, ["a note"], 1)


def test_other_tasks_bring_other_sources_and_the_same_ones_stay(tmp_path):
    growing = ("tasks", "sources.")
    for tasks, sources in (("vt", {}), ("vt,cwe", {"words": "w"}), ("niah_single_2", {"words": "w", "essays": "a"}),
                           ("vt", {})):  # fmt: skip
        with open_store(tmp_path, {"tasks": tasks, "sources": sources}, growing):
            pass
    assert json.loads((tmp_path / "settings.json").read_text())["sources"] == {"words": "w", "essays": "a"}
    with pytest.raises(UserError, match=r"sources\.essays: a -> b"):
        open_store(tmp_path, {"tasks": "vt", "sources": {"essays": "b"}}, growing).__enter__()


def test_half_a_surrogate_pair_is_kept(tmp_path):
    with open_store(tmp_path, SETTINGS) as store:
        store.add(row(0, output="a\ud800b"))
        store.finish(Result("ruler", "ruler-offline", "m", True, SETTINGS, [], ["\udfff"]))
    assert read_samples(tmp_path / "samples.jsonl")["vt", 4096, 0]["output"] == "a\ud800b"
    assert json.loads((tmp_path / "result.json").read_text())["notes"] == ["\udfff"]


def test_a_full_disk_is_one_line_to_the_end(tmp_path):
    (tmp_path / "samples.jsonl").symlink_to("/dev/full")
    store = Store(tmp_path, {})
    with pytest.raises(UserError, match=r"cannot write .*samples\.jsonl: No space left"):
        store.add(row(0))
    store.close()
