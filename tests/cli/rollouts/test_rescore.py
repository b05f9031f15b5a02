"""`nano3 rlvr rescore`: rewards of saved rollouts by the environments of today."""

import json

import pytest

from ...rollout_run import ENVIRONMENT

FAULT = "        raise EnvironmentFaultError('judge', 'asleep')\n"


@pytest.fixture
def rescore(run, folder):
    return lambda *args: run("rlvr", "rescore", folder, "--env", "echo", *args)


def test_rewards_that_are_right_are_equal_and_code_that_differs_is_named(rescore, module):
    module()
    done = rescore()
    assert done.code == 0, done.err
    [row] = [line.split() for line in done.out.splitlines() if line.startswith(" echo")]
    assert row == ["echo", "36", "36", "0", "0", "0", "0.694", "0.694"]
    # The run's file names a code of zeros, and a library that this module does not require.
    assert "echo: code 00000000 -> " in done.out
    assert "langdetect 1.0.9 -> none" in done.out
    assert rescore("--check").code == 0


def test_changed_rewards_are_counted_shown_and_fail_the_check(rescore, module, tmp_path):
    module(ENVIRONMENT.replace("str(task.truth)", "'1'"))
    done = rescore("--step", "1..2", "--out", tmp_path / "rows.jsonl", "--check")
    assert done.code == 1
    [row] = [line.split() for line in done.out.splitlines() if line.startswith(" echo")]
    # say-0 passed 2 and 3 times, say-2 twice a step; say-1 goes on passing.
    assert row[1:5] == ["24", "15", "9", "0"]
    assert "step 1 · say-0 · sample 2: reward 1 -> 0, parts {'said': '0'}" in done.out
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 24
    assert sum(line["outcome"] == "changed" for line in lines) == 9
    assert lines[2] == {
        "step": 1, "environment": "echo", "task": "say-0", "sample": 2, "outcome": "changed", "before": 1.0, "now": 0.0,
        "passed_before": True, "passed_now": False, "parts": {"said": "0"}, "fault": "", "fault_message": "",
    }  # fmt: skip
    assert rescore().code == 0


def test_faults_fail_the_check_and_say_why(rescore, module):
    module(ENVIRONMENT.replace("        return all_or_nothing", f"{FAULT}        return all_or_nothing"))
    found = json.loads(rescore("--json").out)["environments"]["echo"]
    assert (found["fault"], found["faults"], found["equal"]) == (36, {"judge": 36}, 0)
    assert len(found["examples"]) == 3
    assert found["source"]["spec"] == "echo_tasks:Echo"
    done = rescore("--check")
    assert done.code == 1
    assert "no reward any more: judge (asleep)" in done.out


def test_tasks_that_are_gone_are_faults(rescore, module):
    module(ENVIRONMENT.replace("n=4", "n=2"))
    found = json.loads(rescore("--json").out)["environments"]["echo"]
    assert (found["equal"], found["faults"]) == (24, {"no such task": 12})


def test_all_environments_are_measured_together_and_samples_without_a_reward_may_get_one(run, folder, module):
    module()
    judged = ENVIRONMENT.replace('"echo"', '"judged"').replace('f"say-{i}"', 'f"essay <{i}>"').replace("Echo", "Judged")
    module(judged.replace("return all_or_nothing", "return Reward(0.5)\n        return all_or_nothing"), "judged_tasks")
    found = json.loads(run("rlvr", "rescore", folder, "--json").out)["environments"]
    assert list(found) == ["echo", "judged"]
    assert [found["judged"][name] for name in ("samples", "equal", "changed", "fault", "new")] == [12, 3, 6, 0, 3]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step", "x"], "--step x: give N, N..M, N.. or ..M"),
        (["--step", "3..1"], "the first step comes after the last"),
        (["--step", "7..9"], "no rollouts of steps 7 to 9"),
    ],
)
def test_wrong_input_is_one_line(rescore, module, args, words):
    module()
    done = rescore(*args)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_an_environment_that_is_gone_is_one_line(run, folder):
    done = run("rlvr", "rescore", folder)
    assert done.code == 2
    assert "environment echo_tasks:Echo: echo_tasks:Echo cannot be imported" in done.err
    assert "others can be measured with --env NAME" in done.err
    assert len(done.err.splitlines()) == 1
    assert "has no environment nope: there is echo, judged" in run("rlvr", "rescore", folder, "--env", "nope").err
    (folder / "config.toml").unlink()
    assert "config.toml: no such file" in run("rlvr", "rescore", folder).err


def test_an_environment_whose_code_is_broken_is_one_line(rescore, module):
    module("def broken(:\n")
    done = rescore()
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "echo_tasks:Echo cannot be imported: SyntaxError" in done.err
