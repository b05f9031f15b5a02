"""The pairs of a run: which are trained on, which are held out, and which rows are none."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.config.genrm import PairsConfig
from nano3.stages.genrm.pairs import check_sources, gather_pairs, heldout_pairs, training_file, write_pairs

HELPSTEER3 = {"context": [{"role": "user", "content": "Hi"}], "response1": "a", "response2": "b",
              "overall_preference": 0, "individual_preference": []}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def given(i):
    return HELPSTEER3 | {"context": [{"role": "user", "content": f"Hi {i // 2}"}], "response1": f"a{i}"}


@pytest.fixture
def prefs(tmp_path):
    return write(tmp_path / "prefs.jsonl", [*map(given, range(60)), given(0), HELPSTEER3 | {"overall_preference": 9}])


def test_sources_are_put_together_and_no_prompt_is_on_both_sides(prefs, tmp_path):
    cfg = PairsConfig([prefs, "generate:preferences?tasks=spell"], generated_pairs=20, heldout_fraction=0.3)
    found = gather_pairs(cfg, 1000)
    prompts = [{json.dumps(pair.prompt) for pair in side} for side in (found.train, found.heldout)]
    assert not prompts[0] & prompts[1]
    of_files = [pair for pair in [*found.train, *found.heldout] if pair.response_2 == "b"]
    assert len(of_files) == 60  # one came twice, and one is no preference
    assert all(pair.ranking == 3.5 for pair in of_files)
    assert len(found.train) >= 20 + 20
    ((name, why),) = found.refused
    assert name.endswith("prefs.jsonl:62")
    assert "overall_preference is 9" in why
    assert "; 1 rows left out: " in found.line()
    write_pairs(found, tmp_path / "run")
    assert [pair.id for pair in heldout_pairs(tmp_path / "run")] == [pair.id for pair in found.heldout]
    with open(training_file(tmp_path / "run"), encoding="utf-8") as file:
        assert len(file.readlines()) == len(found.train)


def test_a_sample_of_the_held_out_pairs_is_judged(prefs):
    cfg = PairsConfig([prefs], heldout_fraction=0.5)
    few, all_ = gather_pairs(cfg, 5), gather_pairs(cfg, 1000)
    assert len(few.heldout) == 5
    assert [pair.id for pair in few.train] == [pair.id for pair in all_.train]
    assert {pair.id for pair in few.heldout} < {pair.id for pair in all_.heldout}


def test_made_pairs_are_held_out_to_the_number_that_is_judged():
    found = gather_pairs(PairsConfig(generated_pairs=30), 12)
    assert (len(found.train), len(found.heldout)) == (30, 12)


def test_what_is_wrong_is_told(prefs, tmp_path):
    with pytest.raises(UserError, match=r"prefs\.jsonl:62: overall_preference is 9"):
        gather_pairs(PairsConfig([prefs], bad_rows="error"), 10)
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "x"}])
    with pytest.raises(UserError, match=r"to train on; the first of 1 bad rows is .*bad\.jsonl:1: no preference"):
        gather_pairs(PairsConfig([bad]), 10)
    one = write(tmp_path / "one.jsonl", [HELPSTEER3])
    with pytest.raises(UserError, match=r"one\.jsonl: no pairs to hold out"):
        gather_pairs(PairsConfig([one], heldout_fraction=1e-9), 10)
    for source, words in (("nowhere.jsonl", "no file or folder"), ("generate:preferences?tasks=talk", "judged by rule"),
                          ("generate:count", "not generate:preferences")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            check_sources(PairsConfig([source]))
