"""A judge asked a few questions before a run draws anything for it: an answer that never comes, or that nobody can
read, is found out in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from nano3.client.attempts import Tries
from nano3.config.errors import UserError
from nano3.config.rlhf import JudgeConfig
from nano3.rl.environments.base import Task
from nano3.rl.feedback.comparison import Comparison, JudgeStoppedError, PairJudge
from nano3.rl.feedback.local import LocalJudge
from nano3.rl.feedback.scoring import REMEDY
from nano3.rl.feedback.server import ServerJudge

ANSWERS = ("The answer is 3.", "I do not know.")
TASKS = 2
"""Prompts with which a judge is tried; the answers stand in both orders."""
TRIES = Tries(n=2)
SHOWN = 80
"""Characters of a judgement that cannot be read."""


def try_judge(judge: PairJudge, cfg: JudgeConfig, tasks: Iterable[tuple[str, Task]]) -> None:
    """Have a judge that writes its judgements compare two answers to each of a run's first prompts. Other judges are
    not asked: what they say needs no reading, and they count what they are asked for.

    A server is first asked which models it has, within half a minute, and its answers are kept only where the settings
    name a file for them: the run has no folder yet.

    Args:
        judge: as `open_judge` gives it.
        cfg: its settings.
        tasks: prompts, each with the name of its environment; the first TASKS are used.

    Raises:
        UserError: it does not answer, or no judgement of it can be read.
    """
    if isinstance(judge, ServerJudge):
        judge = ServerJudge(
            judge.url, cfg.model, cfg.cache or None, cfg.max_tokens, cfg.workers, TRIES, judge.url_name
        )  # fmt: skip
        judge.find_model()
    elif not isinstance(judge, LocalJudge):
        return
    first = itertools.islice(tasks, TASKS)
    asked = [Comparison(name, task, *pair) for name, task in first for pair in itertools.permutations(ANSWERS)]
    try:
        verdicts = judge.compare(asked)
    except JudgeStoppedError as error:
        raise UserError(str(error)) from error
    if any(verdict.judgement is not None for verdict in verdicts):
        return
    said = " ".join(verdicts[0].text.split())
    said = said if len(said) <= SHOWN else f"{said[: SHOWN - 3]}..."
    raise UserError(
        f"judge: none of {len(asked)} judgements asked for before the run can be read; the first is {said!r}; {REMEDY}"
    )
