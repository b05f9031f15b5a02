"""A generative reward model's training on rewards: preference pairs as tasks, Equation 1 of the report as reward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.data.preferences.layouts import RowError, pair_of, read_pairs
from nano3.data.preferences.made import NAME, made_pairs
from nano3.data.preferences.pair import PreferencePair, in_both_orders, split_pairs
from nano3.data.preferences.prompt import judge_prompt
from nano3.data.tasks.source import HELDOUT_FRACTION, Split
from nano3.rl.environments.base import Reward, Rollout, Task, check_ids
from nano3.rl.genrm import Judgement, genrm_reward, parse_judgement


class Preferences:
    """Judging pairs; the reward is at most 0, that of a judgement which is the truth. A task is solved where the
    judgement has the right form and puts the two responses in the right order, a tie included.

    Only what follows the reasoning counts; an answer that was cut off violates the format.
    """

    name = "genrm"

    def __init__(
        self,
        rows: str | Path | Iterable[Mapping[str, Any] | PreferencePair] | None = None,
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        source: str = PREFIX + NAME,
        swap: bool = True,
        c1: float = 10.0,
        c2: float = 1.0,
    ) -> None:
        """
        Args:
            rows: a file, folder or data set of pairs (nano3.data.preferences.layouts), its rows, or pairs; None: made
                ones.
            n, seed, source: of the pairs made here (nano3.data.preferences.made).
            split: train or heldout, which share no prompt. Of given pairs a tenth of the prompts is held out, and None
                takes them all; of made ones None is train.
            swap: each pair is a second task in the other order.
            c1, c2: weights of Equation 1: of a violated format, and of the ranking.

        Raises:
            UserError: a row that is no preference, or pairs that cannot be made.
        """
        pairs = made_pairs(source, n, seed, split or "train") if rows is None else _pairs(rows, split)
        pairs = list({pair.id: pair for pair in pairs}.values())
        self._tasks = check_ids([_task(pair) for pair in (in_both_orders(pairs) if swap else pairs)], self.name)
        self._c1, self._c2 = c1, c2

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """Equation 1, with each difference by itself in the parts."""
        truth = Judgement(*task.truth)
        found = None if rollout.truncated else parse_judgement(rollout.answer)
        value = genrm_reward(found, truth, found is not None, self._c1, self._c2)
        parts: dict[str, Any] = {"format_ok": found is not None, "truth": list(truth)}
        if found is not None:
            parts["judgement"] = list(found)
            parts |= {f"error_{name}": abs(getattr(found, name) - getattr(truth, name)) for name in truth._fields}
        return Reward(value, found is not None and order(found) == order(truth), parts)


def order(judgement: Judgement) -> int:
    """-1: the first response is the better one by its score, 1: the second, 0: equal scores."""
    return (judgement.score_2 > judgement.score_1) - (judgement.score_2 < judgement.score_1)


def _task(pair: PreferencePair) -> Task:
    prompt = judge_prompt(pair.prompt, pair.response_1, pair.response_2)
    return Task(pair.id, tuple(prompt), [pair.score_1, pair.score_2, pair.ranking])


def _pairs(
    rows: str | Path | Iterable[Mapping[str, Any] | PreferencePair], split: Split | None
) -> list[PreferencePair]:
    pairs = list(read_pairs(str(rows))) if isinstance(rows, str | Path) else _given(rows)
    if split is None:
        return pairs
    if split not in get_args(Split):
        raise UserError(
            f"environment {Preferences.name}: split is {split!r}; it must be one of {', '.join(get_args(Split))}"
        )
    train, heldout = split_pairs(pairs, HELDOUT_FRACTION)
    return heldout if split == "heldout" else train


def _given(rows: Iterable[Mapping[str, Any] | PreferencePair]) -> list[PreferencePair]:
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(row if isinstance(row, PreferencePair) else pair_of(row))
        except RowError as error:
            raise UserError(f"environment {Preferences.name}, row {number}: {error}") from error
    return found
