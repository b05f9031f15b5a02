"""A judge that knows what is right: nano3's own tasks, judged by the rule of nano3.data.preferences.quality."""

from __future__ import annotations

from collections.abc import Sequence

from nano3.data.preferences.quality import RANKINGS, SCORES, judged_generator, quality_of
from nano3.rl.feedback.comparison import Comparison, Verdict
from nano3.rl.genrm import Judgement


class RuleJudge:
    """Scores by the quality of each answer; the ranking follows from the scores, equal ones are a tie."""

    def __init__(self) -> None:
        self.calls = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """See PairJudge.

        Raises:
            UserError: a task that is not of a generator whose answers can be judged.
        """
        self.calls += len(comparisons)
        return [_verdict(each) for each in comparisons]


def _verdict(asked: Comparison) -> Verdict:
    generator = judged_generator(asked.environment)
    first = quality_of(generator, asked.task.truth, asked.response_1)
    second = quality_of(generator, asked.task.truth, asked.response_2)
    scores = SCORES[first], SCORES[second]
    return Verdict(Judgement(*scores, RANKINGS[scores[0] - scores[1]]), f"{first}, {second}")
