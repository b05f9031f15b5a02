"""All responses to a prompt, compared in a circle (report section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nano3.rl.circular import MIDDLE, base_rewards, broken_tie, pairs
from nano3.rl.environments.base import Task
from nano3.rl.feedback.comparison import Comparison, PairJudge, Verdict
from nano3.rl.genrm import SCORES, Judgement


@dataclass(frozen=True)
class Responses:
    """The N >= 2 responses to one prompt."""

    environment: str
    """Name of the task's environment."""
    task: Task
    answers: Sequence[str]
    """Final answers, without reasoning; empty where none was given."""


@dataclass(frozen=True)
class JudgedGroup:
    """What a judge said of them."""

    responses: Responses
    verdicts: list[Verdict]
    """N, in the order of nano3.rl.circular.pairs."""

    @cached_property
    def judgements(self) -> list[Judgement]:
        """What counts of each pair. In place of one that cannot be read stand the scores that the two have from their
        other comparison. A response without any has the lowest score of the group: it may be what spoils the judge's
        output, from which it must not gain."""
        circle = pairs(len(self.responses.answers))
        read = [
            (response, score)
            for pair, verdict in zip(circle, self.verdicts, strict=True)
            if verdict.judgement is not None
            for response, score in zip(pair, broken_tie(verdict.judgement), strict=True)
        ]
        scores, lowest = dict(read), min((score for _, score in read), default=sum(SCORES) / 2)
        return [
            verdict.judgement or Judgement(scores.get(i, lowest), scores.get(j, lowest), MIDDLE)
            for (i, j), verdict in zip(circle, self.verdicts, strict=True)
        ]

    @property
    def base(self) -> list[float]:
        """Base reward of each response."""
        return base_rewards(len(self.responses.answers), self.judgements)

    @property
    def unread(self) -> int:
        """Verdicts that cannot be read."""
        return sum(verdict.judgement is None for verdict in self.verdicts)

    @property
    def usable(self) -> bool:
        """Whether at least half of its verdicts can be read. Else its rewards are made of lengths more than of quality,
        and it should be dropped, as a group with a fault."""
        return 2 * self.unread <= len(self.verdicts)


def judge_groups(judge: PairJudge, groups: Sequence[Responses]) -> list[JudgedGroup]:
    """Have all groups judged at once: N comparisons of N responses, each response once in each place.

    Raises:
        ValueError: a group of fewer than 2 responses, or a judge that gives another number of verdicts.
        JudgeStoppedError, UserError: as the judge.
    """
    circles = [pairs(len(group.answers)) for group in groups]
    asked = [
        Comparison(group.environment, group.task, group.answers[i], group.answers[j])
        for group, circle in zip(groups, circles, strict=True)
        for i, j in circle
    ]
    verdicts = judge.compare(asked)
    if len(verdicts) != len(asked):
        raise ValueError(f"the judge gave {len(verdicts)} verdicts on {len(asked)} comparisons")
    left = iter(verdicts)
    return [JudgedGroup(group, [next(left) for _ in circle]) for group, circle in zip(groups, circles, strict=True)]
