"""Figures of groups that a judge gave their rewards."""

import pytest

from nano3.rl.environments.base import Task, user
from nano3.rl.feedback.comparison import Verdict
from nano3.rl.feedback.groups import JudgedGroup, Responses
from nano3.rl.feedback.lengths import Lengths
from nano3.rl.feedback.reward import feedback_rewards
from nano3.rl.feedback.rules import RuleJudge
from nano3.rl.feedback.scoring import Feedback
from nano3.rl.genrm import Judgement
from nano3.rl.samples import Group, Sample, Segment

TASK = Task("t", user("q"))


def test_quality_is_the_mean_of_the_base_rewards_which_ties_may_move_below_0(tokenizer):
    verdicts = [Verdict(Judgement(1, 1, ranking)) for ranking in (6, 1, 1)]
    judged = JudgedGroup(Responses("e", TASK, ["a", "b", "c"]), verdicts)
    assert judged.base == [-1.5, 3.5, 1]
    rewards = feedback_rewards(judged, [Lengths(9, 1), Lengths(5, 1), Lengths(1, 1)])
    samples = [Sample(TASK, i, 0, [Segment.of_prompt([1])], reward=reward) for i, reward in enumerate(rewards)]
    terms = Feedback(RuleJudge(), tokenizer).terms(Group("e", TASK, samples))
    assert terms["quality"] == pytest.approx(1)
    assert terms["think_adjustment"] == pytest.approx(1 / 6)
