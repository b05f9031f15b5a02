"""`nano3 rlvr` on the command line: what it refuses and what it would do, without a run."""

import json

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)


def nano3(*args):
    return CliRunner().invoke(app, ["rlvr", *map(str, args)], env={"COLUMNS": "100"})


def test_a_dry_run_tells_the_size_of_a_step_and_what_the_report_leaves_open():
    done = nano3("--preset", "rlvr", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["samples_per_step"] == 128 * 16
    assert sum(row["share"] for row in facts["environments"].values()) == pytest.approx(1)
    reported = {row["key"]: row["report"] for row in facts["differences"]}
    assert set(reported.values()) == {"unpublished"}
    assert {"curriculum.sigma", "curriculum.start_mean", "environments.weights"} <= reported.keys()
    tiny = json.loads(nano3("--dry-run", "--json").stdout)
    assert {row["key"]: row["report"] for row in tiny["differences"]}["rollout.prompts"] == 128


def test_without_a_model_it_says_which_verb_makes_one():
    for args in ([], ["profile"]):
        done = nano3(*args)
        assert done.exit_code != 0
        assert "holds no finished sft run" in str(done.exception)
        assert "nano3 sft" in str(done.exception)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["environments.weights={maths=1}"], "did you mean math"),
        (["environments.weights={math=1}", "environments.options={math={row='x'}}"], "options.math.row"),
        (["environments.options={math={rows='x'}}"], "there is no environments.weights.math"),
        (["environments.weights={math=0}"], "a share must be above 0"),
        (["rollout.group=1"], "rollout.group is 1; it must be at least 2"),
        (["rollout.max_context=9000"], "train.pack_length"),
        (["sync.mean=0.1"], "give both or neither"),
        (["schedule.warmup_steps=0", "schedule.warmup_tokens=5"], "in steps"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings, words):
    done = nano3(*[part for text in settings for part in ("--set", text)], "--dry-run")
    if done.exit_code == 0:
        done = nano3("profile", *[part for text in settings for part in ("--set", text)])
    assert done.exit_code != 0
    assert words in str(done.exception)
