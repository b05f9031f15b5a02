"""Saved rollouts measured again: what is equal, what has changed, what fails."""

import dataclasses
import time

import pytest

from nano3.config.errors import UserError
from nano3.rl.environments.base import EnvironmentFaultError, Reward, Task, user
from nano3.rl.environments.registry import Source
from nano3.rl.rollout_files import read_rollouts, rollouts_path
from nano3.rl.saved.rescore import Counts, differences, rescore

from ...rollout_run import make_run


@pytest.fixture
def saved(tokenizer, tmp_path):
    make_run(tmp_path, tokenizer, steps=1)
    return list(read_rollouts(rollouts_path(tmp_path, 1)))


class Today:
    """Of `judged`'s tasks; gives what `answers` has for the sample's words."""

    name = "judged"

    def __init__(self, answer):
        self.answer = answer

    def tasks(self):
        return [Task(f"essay <{i}>", user("")) for i in range(2)]

    def verify(self, task, rollout):
        return self.answer(task, rollout)


def judged(saved, answer, **options):
    found = list(rescore([s for s in saved if s.environment == "judged"], {"judged": Today(answer)}, **options))
    counts = Counts()
    for one in found:
        counts.add(one)
    return found, counts.table()


def test_every_outcome_is_counted_and_means_are_of_the_same_samples(saved):
    def answer(task, rollout):
        if task.id == "essay <0>":
            return Reward(0.5)
        return Reward(0.0) if not rollout.answer else Reward(1.0)

    found, table = judged(saved, answer)
    # In the file's order: a reward, a fault that has one now, two rewards of which one differs.
    assert [one.outcome for one in found] == ["equal", "new", "equal", "changed"]
    assert (table["samples"], table["equal"], table["changed"], table["fault"], table["new"]) == (4, 2, 1, 0, 1)
    assert (table["reward_before"], table["reward_now"]) == (0.25, 0.5)


def test_the_same_value_that_now_counts_as_solved_has_changed(saved):
    found, _ = judged(saved, lambda task, rollout: Reward(0.0 if not rollout.answer else 0.25, passed=True))
    assert [one.outcome for one in found][2:] == ["changed", "changed"]


def test_faults_are_counted_by_kind_and_end_nothing(saved):
    def answer(task, rollout):
        if task.id == "essay <0>":
            raise EnvironmentFaultError("judge", "no answer")
        return 1 / 0 if rollout.answer else None

    found, table = judged(saved, answer)
    assert table["faults"] == {"judge": 2, "no reward": 1, "ZeroDivisionError": 1}
    assert table["fault"] == 4
    assert table["reward_now"] is None
    assert found[0].message == "no answer"


def test_an_answer_that_does_not_come_in_time_is_a_fault(saved):
    found, _ = judged(saved[-1:], lambda task, rollout: time.sleep(5), seconds=0.05)
    assert [one.fault for one in found] == ["time"]


def test_a_task_that_is_gone_is_a_fault_of_its_samples(saved):
    class Fewer(Today):
        def tasks(self):
            return super().tasks()[:1]

    samples = [sample for sample in saved if sample.environment == "judged"]
    found = list(rescore(samples, {"judged": Fewer(lambda task, rollout: Reward(0.5))}))
    assert [one.fault for one in found] == ["", "", "no such task", "no such task"]
    assert found[2].message == "judged has no task essay <1> today"


def test_an_environment_that_is_not_given_is_an_error(saved):
    with pytest.raises(UserError, match="no environment for the saved rollouts of echo"):
        list(rescore(saved, {"judged": Today(lambda task, rollout: Reward(0.5))}))


def test_differences_of_code_name_what_differs():
    then = Source("a", "a-package", "1.0", "abcdefgh12", {"sympy": "1.1", "gone": "3"})
    assert differences(then, then) == []
    now = dataclasses.replace(then, version="1.1", sha256="12345678ab", requires={"sympy": "1.2", "more": "1"})
    assert differences(then, now) == [
        "a-package 1.0 -> 1.1", "code abcdefgh -> 12345678", "gone 3 -> none", "more none -> 1", "sympy 1.1 -> 1.2",
    ]  # fmt: skip
    assert differences(then, dataclasses.replace(then, spec="b")) == []
    assert differences(then, dataclasses.replace(then, package="other")) == ["package a-package -> other"]
