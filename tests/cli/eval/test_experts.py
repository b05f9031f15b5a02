"""`nano3 eval experts` from the command line."""

from __future__ import annotations

import json

import pytest

from nano3.cli.eval.experts import default_threshold
from nano3.progress import Progress


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "def main(argv):\n" * 20 * i} for i in range(1, 30)]
    rows.append({"messages": [{"role": "user", "content": "The quick brown fox"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_threshold_decides_the_exit_code(run, model_folder, prompts, tmp_path):
    ask = ("eval", "experts", "--from", model_folder, "--prompts", prompts)
    done = run(*ask, "--out", tmp_path / "out", "--json", "--threshold", 5)
    assert done.code == 1
    assert "with 5 experts a block the even share is 20 %" in done.err
    found = json.loads(done.out)
    assert found == json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["exceeded"]
    assert (tmp_path / "out" / "experts.png").stat().st_size > 1000
    (block,) = found["blocks"]
    assert sum(block["shares"]) == pytest.approx(100)
    assert sum(block["counts"]) == found["tokens"] * 2  # top 2
    assert found["above"][0]["share"] == block["max_share"] == max(block["shares"])
    value = {score["metric"]: score["value"] for score in found["scores"]}
    assert value["largest share"] == block["max_share"]

    above = run(*ask, "--out", tmp_path / "out", "--threshold", block["max_share"] - 0.1)
    assert above.code == 1
    assert "even share" not in above.err
    below = run(*ask, "--out", tmp_path / "out", "--threshold", block["max_share"] + 0.1)
    assert below.code == 0
    assert "no expert takes more than" in below.err
    default = run(*ask, "--out", tmp_path / "out", "--json")
    assert json.loads(default.out)["threshold"] == 40, "5 experts: twice the even share of 20 %"
    assert default.code == int(block["max_share"] > 40)


def test_many_experts_are_held_to_the_reports_5_percent():
    assert [default_threshold(n) for n in (128, 41, 8)] == [5.0, 5.0, 25.0]


def test_an_interrupted_count_goes_on(run, model_folder, prompts, tmp_path, monkeypatch):
    ask = ("eval", "experts", "--from", model_folder, "--prompts", prompts, "--threshold", 100)
    whole = json.loads(run(*ask, "--out", tmp_path / "whole", "--json").out)

    def stop(self, cost, what=""):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "sample", stop)
        assert run(*ask, "--out", tmp_path / "cut").code == 130
    partial = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert not partial["complete"]
    assert 0 < partial["tokens"] < whole["tokens"]
    assert json.loads(run(*ask, "--out", tmp_path / "cut", "--json").out)["blocks"] == whole["blocks"]


@pytest.mark.parametrize(
    ("row", "words"),
    [({"prompt": [1, 99999]}, "no token has the id 99999"), ({"text": "x"}, "prompt or messages"),
     ({"messages": [{"role": "nobody"}]}, "messages[0]")],
)  # fmt: skip
def test_wrong_prompts(run, model_folder, tmp_path, row, words):
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    done = run("eval", "experts", "--from", model_folder, "--prompts", tmp_path / "p.jsonl", "--out", out)
    assert done.code == 2
    assert words in done.err
    assert not out.exists()
