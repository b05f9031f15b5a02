"""Which model a verb takes where its command line names none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)


def finish(run: str, model: Path, when: float) -> None:
    """Leave a finished run, exported at `when`."""
    shutil.copytree(model, Path("runs", run, "model"))
    os.utime(Path("runs", run, "model", "config.json"), (when, when))


GENERATE = ("generate", "--prompt", "a", "--max-tokens", 1, "--json")


def test_the_newest_finished_run_is_taken_and_named(run, base_folder):
    finish("old", base_folder, 1000)
    finish("new", base_folder, 2000)
    (Path("runs") / "unfinished" / "checkpoints").mkdir(parents=True)
    done = run(*GENERATE)
    assert done.code == 0, done.err
    assert done.err.splitlines()[0] == "model: runs/new (the newest finished run; --model names another)"
    assert '"model": "new"' in done.out
    done = run("eval", "experts", "--limit", 1, "--threshold", 100, "--json")
    assert done.code == 0, done.err
    assert "model: runs/new (the newest finished run; --from names another)" in done.err


def test_the_variable_goes_before_a_run_and_an_option_before_both(run, base_folder, model_folder, monkeypatch):
    finish("new", base_folder, 2000)
    monkeypatch.setenv("NANO3_MODEL", str(model_folder))
    done = run(*GENERATE)
    assert f"model: {model_folder} (NANO3_MODEL)" in done.err
    assert '"model": "small-model"' in done.out
    done = run(*GENERATE, "--model", "runs/new")
    assert "model: " not in done.err
    assert '"model": "new"' in done.out


def test_ruler_evaluates_the_newest_run(run, base_folder):
    finish("new", base_folder, 2000)
    done = run("eval", "ruler", "--ctx", 512, "--tasks", "niah_single_1", "--samples", 1)
    assert done.code == 0, done.err
    assert Path("runs/eval-ruler-new/result.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--prompt", "a"),
        ("chat",),
        ("serve",),
        ("eval", "ruler", "--ctx", "1m"),
        ("eval", "lm"),
        ("eval", "experts"),
        ("extend-context",),
    ],
)
def test_without_any_one_line_says_how_to_get_one(run, command):
    done = run(*command)
    assert done.code == 2
    assert "no model is named and runs/ holds no finished run" in done.err
    assert "train one with `nano3 pretrain`" in done.err
    assert done.err.count("\n") == 1


def test_a_hub_id_that_cannot_be_had_is_one_line_for_every_verb(run):
    for command in (("generate", "--prompt", "a", "--model"), ("eval", "ruler", "--from"), ("pretrain", "--from"),
                    ("info", "--model"), ("extend-context", "--dry-run", "--from")):  # fmt: skip
        done = run(*command, "org/none@v1")
        assert done.code == 2
        assert "run `hf download org/none --revision v1`" in done.err
        assert done.err.count("\n") == 1


def test_a_run_that_went_on_after_its_end_says_which_model_it_has(run, base_folder):
    finish("mine", base_folder, 1000)
    folder = Path("runs", "mine")
    (folder / "training-result.json").write_text('{"training": {"step": 7}}')
    (folder / "checkpoints" / "step-7").mkdir(parents=True)
    assert "note:" not in run(*GENERATE, "--model", folder).err
    (folder / "checkpoints" / "step-12").mkdir()
    done = run(*GENERATE, "--model", folder)
    assert done.code == 0
    told = "runs/mine has gone on to step 12 and not finished: its model is that of step 7"
    assert f"{told}; to finish it: nano3 pretrain --resume --out runs/mine" in done.err


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(run):
    Path("runs", "mine", "checkpoints", "step-3").mkdir(parents=True)
    for command in ((*GENERATE, "--model"), ("eval", "ruler", "--from"), ("pretrain", "--from")):
        done = run(*command, "runs/mine")
        assert done.code == 2
        (line,) = done.err.splitlines()
        assert line.endswith(": nano3 pretrain --resume --out runs/mine")
