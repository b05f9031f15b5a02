"""`nano3 rlhf` on the command line: what it refuses and what it would do, how a run ends, and its explanations."""

import json
import re
import shutil
import sys

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.config.presets import load_rlhf, to_toml
from nano3.train.tracking.runs import read_run

from ...stages.policy_runs import save_base

SMALL = [
    "prompts.weights={count=1}", "prompts.tasks=8", "rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=8",
    "train.steps=2", "train.pack_length=512", "heldout.tasks=0", "stop.truncated=1", "stop.zero_variance=1",
]  # fmt: skip
JUDGE = "def judge(messages, first, second):\n    raise RuntimeError('down for today')\n"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base", "</think>")


def nano3(*args):
    return CliRunner().invoke(app, ["rlhf", *map(str, args)], env={"COLUMNS": "100"})


def settings(*texts):
    return [part for text in texts for part in ("--set", text)]


def test_a_dry_run_tells_the_size_of_a_step_and_the_judges_part_in_it():
    done = nano3(
        "--preset", "rlhf", "--data", "generate:count", "--data", "generate:sort?levels=3", "--dry-run", "--json"
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["samples_per_step"] == facts["judge_calls_per_step"] == 128 * 16
    assert facts["prompts"]["sort"] == {"spec": "generate:sort?levels=3", "share": 0.5}
    reported = {row["key"]: row["report"] for row in facts["differences"]}
    assert set(reported.values()) == {"unpublished"}
    tiny = json.loads(nano3("--judge", "http://127.0.0.1:9", "--dry-run", "--json").stdout)
    assert tiny["judge"] == "http://127.0.0.1:9"
    assert {row["key"]: row["report"] for row in tiny["differences"]}["rollout.prompts"] == 128


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"), (["--judge", "rulez"], "did you mean rules"),
        (["--preset", "rlhf", "--data", "generate:count"], "no judge is named"), (["--preset", "rlhf"], "no prompts"),
        (["--data", "generate:tool"], "tools"), (["--judge", "no_module:x"], "cannot be imported"),
        (["--judge", "http://user:pw@here"], "name or password"), (settings("judge.waits=3"), "judge.wait"),
        (settings("schedule.warmup_steps=0", "schedule.warmup_tokens=5"), "in steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(args, words, base):
    done = nano3("--from", base, "--out", "run", *args)
    assert done.exit_code != 0
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def test_it_starts_from_the_newest_run_of_sft_or_rlvr(base, tmp_path):
    assert "holds no finished sft or rlvr run" in str(nano3().exception)
    for name, section in (("sft-a", "reasoning"), ("rlvr-a", "curriculum"), ("pretrain-a", "data")):
        shutil.copytree(base, tmp_path / "runs" / name / "model")
        (tmp_path / "runs" / name / "config.toml").write_text(f"[train]\nsteps = 1\n[{section}]\n", "utf-8")
    done = nano3("--out", "run", *settings(*SMALL, "train.steps=1"))
    assert done.exit_code == 0, done.output
    assert re.search(r"model: runs/(sft|rlvr)-a \(the newest finished sft or rlvr run", done.stderr)


def test_a_finished_run_is_summed_up_listed_and_explained(base, tmp_path):
    done = nano3("--from", base, "--out", "run", *settings(*SMALL, "heldout.tasks=3", "heldout.samples=2"))
    assert done.exit_code == 0, done.output
    assert "Held-out prompts, judged by rules" in done.stdout
    assert "first step" in done.stdout
    figures = [line.split("  ")[0].strip() for line in done.stdout.splitlines()]
    order = ["reward", "judge's score", "thinking tokens", "answer tokens", "entropy, nats", "policy loss"]
    assert [name for name in figures[: figures.index("policy loss") + 1] if name in order] == order
    assert "8 in all" in done.stdout
    found = read_run(tmp_path / "run")
    assert (found.verb, found.state, found.step) == ("rlhf", "finished", 2)
    told = json.loads(nano3("explain", "run", "--prompt", 1, "--step", 1, "--json").stdout)
    assert len(told["responses"]) == 2
    shown = nano3("explain", "run", "--prompt", 1, "--step", 1)
    assert f"reward {told['responses'][0]['reward']:.3f}" in shown.stdout
    assert re.match(r"\S[^<]*\S$", told["question"])
    assert "\nquestion\n  " + told["question"].split("\n")[0] in shown.stdout
    # Without a folder the newest finished run of rlhf is taken, not that of another verb.
    for name, section in (("rlhf-a", "length_control"), ("rlvr-b", "curriculum")):
        shutil.copytree(tmp_path / "run", tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "config.toml").write_text(f"[train]\nsteps = 2\n[{section}]\n", "utf-8")
    newest = nano3("explain", "--prompt", 1, "--step", 1)
    assert newest.stderr == "run: runs/rlhf-a (the newest finished rlhf run; its folder as argument names another)\n"
    assert newest.stdout == shown.stdout
    shutil.rmtree(tmp_path / "runs")
    assert "no run is named and runs/ holds no finished rlhf run" in str(nano3("explain").exception)
    for args, words in ((["--prompt", 9], "prompts 0 to 1"), (["--step", 7], "no rollouts of step 7")):
        assert words in str(nano3("explain", "run", *args).exception)


def test_a_judge_that_does_not_answer_ends_with_exit_code_3(base, tmp_path, monkeypatch):
    (tmp_path / "broken_judge.py").write_text(JUDGE, "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    patience = "judge.tries=2", "judge.wait=0"
    done = nano3("--from", base, "--out", "run", "--judge", "broken_judge:judge", *settings(*SMALL, *patience))
    assert done.exit_code == 3
    assert "the run waits 0 s and asks again, at most 1 more time" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "stopped after step 0: judge broken_judge:judge: RuntimeError: down for today; the last good checkpoint is "
    )
    assert "nano3 rlhf --resume --out run\n" in re.sub(r" +\n", "\n", done.stdout)
    again = nano3("--resume", "--out", "run", "--judge", "rules", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["steps"] == 2


def test_a_run_whose_judge_cannot_be_read_goes_on_with_another(base, tmp_path, monkeypatch):
    (tmp_path / "mute_judge.py").write_text("def judge(messages, first, second):\n    return 'hm'\n", "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    done = nano3("--from", base, "--out", "run", "--judge", "mute_judge:judge", *settings(*SMALL))
    assert done.exit_code == 3
    assert "judge cannot be read" in done.stderr
    assert "nano3 rlhf --resume --out run --judge JUDGE\n" in re.sub(" +\n", "\n", done.stdout)
    again = nano3("--resume", "--out", "run", "--judge", "rules", "--json")
    assert again.exit_code == 0, again.output


def test_options_stand_behind_the_inner_verb():
    done = nano3("--json", "explain", "run")
    assert done.exit_code == 2
    assert "give options behind explain" in done.output


def test_settings_are_written_and_read_again(tmp_path):
    cfg = load_rlhf("tiny", ["judge.options={score=4}", "prompts.sources={count='generate:count?levels=3'}"])
    (tmp_path / "mine.toml").write_text(to_toml(cfg), "utf-8")
    assert load_rlhf(str(tmp_path / "mine.toml")) == cfg
