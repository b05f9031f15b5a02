"""Rewards of drawn groups by a judge, which is waited for where it does not answer at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.rl.feedback.comparison import JudgeStoppedError, PairJudge
from nano3.rl.feedback.groups import JudgedGroup, Responses, judge_groups
from nano3.rl.feedback.lengths import Lengths, part_lengths
from nano3.rl.feedback.reward import TERMS, LengthControl, feedback_rewards
from nano3.rl.samples import Group, Sample

LOOK = 1.0
"""Seconds after which a wait looks whether the run is to end."""
UNREAD = "judge cannot be read"
"""Kind of the fault of a group most of whose judgements are no judgements."""
REMEDY = "give a --judge that answers as nano3 rlhf genrm teaches"


@dataclass(frozen=True)
class Patience:
    """How long a judge that does not answer is waited for."""

    tries: int = 1
    wait: float = 0.0
    """Seconds between two of them."""
    say: Callable[[str], None] = lambda line: None
    """Hears before each wait why."""
    sleep: Callable[[float], object] = time.sleep
    stop: Callable[[], bool] = lambda: False
    """Whether the run is asked to end, so that it does not wait any longer."""

    def ask(self, judge: PairJudge, groups: Sequence[Responses]) -> list[JudgedGroup]:
        """As `judge_groups`.

        Raises:
            JudgeStoppedError: no try brought an answer.
        """
        for left in range(self.tries - 1, 0, -1):
            try:
                return judge_groups(judge, groups)
            except JudgeStoppedError as error:
                if not self.stop():
                    times = "time" if left == 1 else "times"
                    self.say(f"{error}; the run waits {self.wait:g} s and asks again, at most {left} more {times}")
                    self._pause()
                if self.stop():
                    raise
        return judge_groups(judge, groups)

    def _pause(self) -> None:
        left = self.wait
        while left > 0 and not self.stop():
            self.sleep(min(left, LOOK))
            left -= LOOK


class Feedback:
    """Gives the samples of groups their rewards: the judge's scores, and what their lengths add."""

    shown = ("quality", "think_tokens", "final_tokens")
    """What of `terms` the display shows first."""

    def __init__(
        self,
        judge: PairJudge,
        tokenizer: Tokenizer,
        control: LengthControl | None = None,
        judged_as: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """
        Args:
            judge: compares the answers.
            tokenizer: of the policy; lengths are in its tokens.
            control: weights of length control; None: those of the report.
            judged_as: by name of an environment, what the judge is told as its name.
            patience: None: the judge is asked once.
        """
        self.judge, self.tokenizer, self.control = judge, tokenizer, control or LengthControl()
        self._judged_as, self._patience = judged_as or {}, patience or Patience()
        self._calls = judge.calls

    def score(self, groups: Sequence[Group]) -> None:
        """Enter the rewards of all samples; a group with a fault is left as it is, and one whose judgements cannot be
        read has a fault then.

        Raises:
            JudgeStoppedError, UserError: as the judge; no reward is entered then.
        """
        able = [group for group in groups if not group.fault]
        asked = [
            Responses(self._judged_as.get(group.environment, group.environment), group.task,
                      [sample.rollout.answer for sample in group.samples])
            for group in able
        ]  # fmt: skip
        for group, judged in zip(able, self._patience.ask(self.judge, asked) if asked else [], strict=True):
            self._enter(group, judged)

    def terms(self, group: Group) -> dict[str, float]:
        """Figures of a group with rewards: means over its samples; of the adjustments, whose mean is 0, of their sizes.

        quality                             the base reward; the judge's scores, ties parted
        think_adjustment, answer_adjustment sizes of the adjustments for length
        think_bonus, answer_bonus           bonuses for concise responses
        think_tokens, final_tokens          tokens of the reasoning, and of the final answer
        unread                              share of the judgements that cannot be read
        """
        parts = [sample.reward.parts for sample in group.samples if sample.reward is not None]

        def mean(name: str, value: Callable[[float], float] = float) -> float:
            return sum(value(each[name]) for each in parts) / len(parts)

        found = {"quality": mean("base")} | {name: mean(name, abs) for name in TERMS if name != "base"}
        found |= {"think_tokens": mean("think_tokens"), "final_tokens": mean("answer_tokens")}
        return found | {"unread": sum(not each["judgement"]["read"] for each in parts) / len(parts)}

    def take_calls(self) -> int:
        """Comparisons that the judge was asked for since the last call, as it counts them."""
        before, self._calls = self._calls, self.judge.calls
        return self._calls - before

    def _enter(self, group: Group, judged: JudgedGroup) -> None:
        if not judged.usable:
            for sample in group.samples:
                sample.reward, sample.fault = None, UNREAD
                sample.fault_message = f"{judged.unread} of {len(judged.verdicts)} judgements without scores; {REMEDY}"
            return
        lengths = [self._lengths(sample) for sample in group.samples]
        for sample, reward in zip(group.samples, feedback_rewards(judged, lengths, self.control), strict=True):
            sample.reward = reward

    def _lengths(self, sample: Sample) -> Lengths:
        return part_lengths(sample.segments[-1].after_prompt, sample.thinking_open, self.tokenizer)
