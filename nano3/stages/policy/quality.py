"""Held-out prompts of a run with a judge: how good its answers are, and how long, before its first step and after its
last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nano3.config.rlhf import RlhfConfig
from nano3.rl.feedback.comparison import JudgeStoppedError
from nano3.rl.feedback.scoring import Feedback
from nano3.rl.samples import Group
from nano3.stages.policy.run import PolicyRun
from nano3.stages.policy.scores import (
    Means,
    Score,
    check_same,
    compare,
    draw_heldout,
    gather,
    read_before,
    read_settings,
    tell_faults,
    write_heldout,
)
from nano3.train.world import attempt

MEASURES = {"quality": "base", "think_tokens": "think_tokens", "answer_tokens": "answer_tokens"}
"""Name of a measure to the part of a reward that it is the mean of."""
CUT = "truncated"
"""Share of the answers that reached their limit."""
ALL = "all"
"""In place of an environment: the prompts of all, where there are several."""


@dataclass(frozen=True)
class HeldoutQuality:
    """Asks and compares."""

    run: PolicyRun[RlhfConfig]
    feedback: Feedback
    """With the judge of held-out prompts."""
    judge: str
    """Its spec."""
    of_run: bool
    """It is the judge of the run."""

    def check_same(self) -> None:
        """Refuse a resume whose answers from before the first step were scored by another judge, or drawn otherwise.
        The run's own judge may be at another place now.

        Raises:
            UserError: what differs.
        """
        run = self.run
        moved = self.of_run and read_settings(run.run_dir).get("judge_of_run", False)
        check_same(run.cfg.heldout, run.run_dir, **({} if moved else {"judge": self.judge}))

    def before(self) -> None:
        """Measure, and keep the values, unless it was done. Every rank must call.

        Raises:
            JudgeStoppedError: on all ranks.
        """
        run = self.run
        if not run.cfg.heldout.tasks or run.world.from_main(read_before(run.run_dir)) is not None:
            return
        values = self._ask()
        if run.world.is_main:
            write_heldout(run.run_dir, values, **self._settings)

    def after(self) -> list[Score]:
        """Measure again and compare; on the main rank. Every rank must call.

        Raises:
            JudgeStoppedError: on all ranks.
        """
        run = self.run
        before = run.world.from_main(read_before(run.run_dir))
        if not run.cfg.heldout.tasks or before is None:
            return []
        run.sampling.sync.sync()
        after = self._ask()
        if not run.world.is_main:
            return []
        scores = [score for name in before for score in _compare(before[name], after[name], name)]
        write_heldout(run.run_dir, before, after, scores, **self._settings)
        return scores

    @property
    def _settings(self) -> dict[str, Any]:
        return {"samples": self.run.cfg.heldout.samples, "judge": self.judge, "judge_of_run": self.of_run}

    def _ask(self) -> dict[str, Means]:
        run = self.run
        groups = draw_heldout(run.cfg, run.domains, run.sampling.worker, run.world)
        stopped: list[str] = []

        def judge() -> None:
            try:
                self.feedback.score(groups)
            except JudgeStoppedError as error:
                stopped.append(str(error))

        run.world.agree(attempt(judge))
        if reasons := [reason for part in run.world.gather(stopped) for reason in part]:
            raise JudgeStoppedError(reasons[0])
        tell_faults(groups, run.world)
        good = [group for group in groups if not group.fault]
        found = {name: self._means(good, part) for name, part in MEASURES.items()}
        cut = [(g.environment, g.task.id, sum(s.truncated for s in g.samples) / len(g.samples)) for g in good]
        return found | {CUT: gather(run.domains, run.world, cut)}

    def _means(self, groups: list[Group], part: str) -> Means:
        rows = []
        for group in groups:
            values = [sample.reward.parts[part] for sample in group.samples if sample.reward is not None]
            rows.append((group.environment, group.task.id, sum(values) / len(values)))
        return gather(self.run.domains, self.run.world, rows)


def _compare(before: Means, after: Means, measure: str) -> list[Score]:
    scores = compare(before, after, measure)
    return compare(_together(before), _together(after), measure) + scores if len(scores) > 1 else scores


def _together(values: Means) -> Means:
    """All prompts as those of one environment."""
    return {ALL: {f"{name}/{task}": value for name, of_tasks in values.items() for task, value in of_tasks.items()}}
