"""`nano3 eval compare` on the command line."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def results(tmp_path):
    for name, value in (("a", 50.0), ("b", 61.0)):
        (tmp_path / name).mkdir()
        score = {"task": "arc", "length": None, "metric": "acc", "value": value, "stderr": 2.0, "n": 625}
        result = {"kind": "lm", "name": "lm", "model": name, "complete": True, "settings": {"fewshot": value > 60},
                  "scores": [score]}  # fmt: skip
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_a_table_a_chart_and_what_differs(run, results):
    done = run("eval", "compare", results / "a", f"tuned={results / 'b'}", "--out", results / "c.png")
    assert done.code == 0
    assert "50.0 (46-54)" in done.out
    assert "61.0 (57-65) +11.0*" in done.out
    assert "note: tuned: lm was run with fewshot True (a: False)" in done.err
    assert (results / "c.png").is_file()


def test_no_zero_has_a_sign(run, results):
    for name in "ab":
        file = results / name / "result.json"
        score = {"value": 0.0, "stderr": 1e-17, "low": -1e-15, "high": 13.3, "n": 25}
        result = json.loads(file.read_text())
        result["scores"][0].update(score)
        file.write_text(json.dumps(result))
    done = run("eval", "compare", results / "a", results / "b")
    assert "0.0 (0-13) +0.0" in done.out
    assert "-0" not in done.out.replace("(0-13)", "")


def test_json_has_the_numbers(run, results):
    done = run("eval", "compare", results / "a", results / "a", "--json")
    found = json.loads(done.out)
    assert found["stages"] == ["a", "a (2)"]
    assert found["rows"][0]["stages"]["a (2)"]["change"] == 0


def test_a_page_has_its_chart_beside_it(run, results):
    done = run("eval", "compare", results / "a", results / "b", results / "a", "--baseline", "previous",
               "--out", results / "card.md")  # fmt: skip
    assert done.code == 0
    page = (results / "card.md").read_text("utf-8")
    assert "](card.png)" in page
    assert "| 61.0 (57-65) +11.0\\* | 50.0 (46-54) -11.0\\* |" in page
    assert "- b: lm was run with fewshot True (a: False)" in page
    assert (results / "card.png").is_file()
    assert "difference from the one before" in done.out


def test_rows_can_be_left_out(run, results):
    file = results / "a" / "result.json"
    result = json.loads(file.read_text())
    result["scores"].append({**result["scores"][0], "task": "text", "metric": "byte_perplexity"})
    file.write_text(json.dumps(result))
    ask = ("eval", "compare", results / "a", results / "b")
    assert "text, byte_perplexity" in run(*ask).out
    shown = run(*ask, "--without", "*perplexity")
    assert "arc, acc" in shown.out
    assert "perplexity" not in shown.out
    assert "--without foo: no row has that name; there are arc, acc, text, byte_perplexity" in " ".join(
        run(*ask, "--without", "foo").err.split()
    )
    assert "no row is left" in run(*ask, "--without", "*").err


def test_wrong_input_is_one_line(run, results):
    assert run("eval", "compare", results / "a", "--baseline", "last").err.startswith(
        "error: --baseline last: write first or previous"
    )
    assert run("eval", "compare", results / "a", "--out", "c.svg").err.startswith("error: --out c.svg: give")
    assert "several results of lm on arc: give their folders one by one" in run("eval", "compare", results).err
    missing = run("eval", "compare", results / "nothing")
    assert missing.code == 2
    assert "no such folder" in missing.err
