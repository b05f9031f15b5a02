"""`nano3 eval tasks` from the command line."""

from __future__ import annotations

import json
import re

import pytest

from nano3.cli.app import main
from nano3.data.tasks.catalogue import check, find_generator
from nano3.progress import Progress


def test_held_out_tasks_are_asked_scored_and_kept(run, model_folder, tmp_path):
    """Scores are those of the kept answers; another kind and more of the old goes on in the same folder."""
    ask = ("eval", "tasks", "--from", model_folder, "--out", tmp_path / "out", "--max-tokens", 8, "--json")
    done = run(*ask, "count?levels=3-4", "--samples", 4)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {(s["task"], s["metric"], s["n"]) for s in found["scores"]} == {
        ("count?levels=3-4", "accuracy", 4), ("count?levels=3-4", "thinking_tokens", 4),
    }  # fmt: skip
    assert set(found["by_level"]["count?levels=3-4"]) <= {"3", "4"}
    more = run(*ask, "count?levels=3-4", "generate:tool", "--samples", 5)
    assert "6 tasks to answer; 4 are there" in more.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == len({(row["task"], row["id"]) for row in rows}) == 10
    for row in rows:
        assert row["score"] == check(row["task"].partition("?")[0], row["truth"], row["replies"])
        assert row["replies"][0]["role"] == "assistant"
    value = {(s["task"], s["metric"]): s["value"] for s in json.loads(more.out)["scores"]}
    for name in ("count?levels=3-4", "tool"):
        scores = [row["score"] for row in rows if row["task"] == name]
        assert value[name, "accuracy"] == pytest.approx(100 * sum(scores) / 5)


def test_a_right_answer_counts(run, model_folder, tmp_path, monkeypatch):
    """With answers that solve every second task, half are solved, and their reasoning is counted."""
    generator = find_generator("spell")

    def solve(engine, encoder, tasks, max_tokens, **how):
        assert how["thinking"] is False
        return [task.solution if i % 2 else [{"role": "assistant", "content": ""}] for i, task in enumerate(tasks)]

    monkeypatch.setattr("nano3.eval.tasks.run.answer", solve)
    done = run("eval", "tasks", "spell", "--from", model_folder, "--out", tmp_path / "out", "--samples", 6,
               "--thinking", "off", "--json")  # fmt: skip
    scores = {score["metric"]: score for score in json.loads(done.out)["scores"]}
    assert scores["accuracy"]["value"] == 50.0
    assert scores["accuracy"]["low"] < 50.0 < scores["accuracy"]["high"]
    assert scores["thinking_tokens"]["value"] > 0
    assert not scores["thinking_tokens"]["higher_is_better"]
    assert generator.name in run("eval", "compare", tmp_path / "out").out


def test_an_interrupted_evaluation_goes_on_with_the_same_samples(run, model_folder, tmp_path, monkeypatch):
    ask = ("eval", "tasks", "count", "sort", "--from", model_folder, "--samples", 3, "--temperature", 1.0,
           "--max-tokens", 6, "--json")  # fmt: skip
    whole = json.loads(run(*ask, "--out", tmp_path / "whole").out)

    def stop(self, cost, what=""):
        raise KeyboardInterrupt

    monkeypatch.setattr("nano3.eval.tasks.run.TOGETHER", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "sample", stop)
        cut = run(*ask, "--out", tmp_path / "cut")
    assert cut.code == 130
    assert "give the same command again to go on" in cut.err
    again = json.loads(run(*ask, "--out", tmp_path / "cut").out)
    assert again["scores"] == whole["scores"]
    files = [(tmp_path / name / "samples.jsonl").read_text("utf-8").splitlines() for name in ("whole", "cut")]
    assert sorted(files[0]) == sorted(files[1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["coutn"], "did you mean generate:count?"),
        (["count?levels=99"], "has no level 99"),
        (["--thinking", "maybe"], "--thinking maybe: write on, off, or a budget in tokens"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(run, model_folder, tmp_path, words, told):
    done = run("eval", "tasks", *words, "--from", model_folder, "--out", tmp_path / "out")
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tasks_that_pass_the_context_are_told(run, model_folder, tmp_path):
    done = run("eval", "tasks", "tool", "--from", model_folder, "--out", tmp_path / "out", "--samples", 2,
               "--max-tokens", 10**9)  # fmt: skip
    assert done.code == 0, done.err
    assert "note: 2 tasks were not asked, and count as not solved" in done.err


@pytest.fixture(scope="module")
def fp8_folder(model_folder, tmp_path_factory):
    """The small model in FP8, with scales of keys and values."""
    out = tmp_path_factory.mktemp("fp8") / "fp8"
    with pytest.raises(SystemExit) as end:
        main(["quantize", "--from", str(model_folder), "--calibrate", "generate:count", "--samples", "4",
              "--length", "128", "--out", str(out)])  # fmt: skip
    assert not end.value.code
    return out


def test_a_cache_in_fp8_is_another_evaluation(run, fp8_folder, model_folder, tmp_path):
    ask = ("eval", "tasks", "count", "--samples", 2, "--max-tokens", 4, "--out", tmp_path / "out", "--json")
    plain = json.loads(run(*ask, "--from", fp8_folder).out)
    assert "kv_cache_dtype" not in plain["settings"]
    other = run(*ask, "--from", fp8_folder, "--kv-cache-dtype", "fp8")
    assert other.code == 2
    assert "kv_cache_dtype" in other.err
    done = run(*ask[:-2], tmp_path / "fp8", "--json", "--from", fp8_folder, "--kv-cache-dtype", "fp8")
    assert json.loads(done.out)["settings"]["kv_cache_dtype"] == "fp8"
    refused = run(*ask[:-2], tmp_path / "none", "--from", model_folder, "--kv-cache-dtype", "fp8")
    assert refused.code == 2
    assert "take a folder of `nano3 quantize`" in refused.err


def test_twice_the_context_fits_with_a_cache_in_fp8(run, fp8_folder, tmp_path):
    """By what --memory leaves for keys and values, of bf16 activations."""
    ask = ("eval", "ruler", "--from", fp8_folder, "--ctx", "256k", "--memory", "4MiB", "--tasks", "niah_single_1",
           "--dtype", "bfloat16")  # fmt: skip
    fits = [int(re.findall(r"largest that fits is (\d+)", run(*ask, *more).err)[0])
            for more in ((), ("--kv-cache-dtype", "fp8"))]  # fmt: skip
    assert fits[1] > 1.2 * fits[0]
