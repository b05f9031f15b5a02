"""Held-out tasks of a run of reinforcement learning (its heldout.json) as scores of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nano3.config.errors import UserError
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.reading import read_json

FILE = "heldout.json"
KIND = "held-out tasks"
REWARD = "reward"
LOWER = ("think_tokens", "answer_tokens", "truncated")
"""Measures of which less is better."""


class HeldoutScore(NamedTuple):
    """Tasks of one environment by one measure."""

    environment: str
    measure: str
    score: dict[str, Any]
    """Mean over the tasks with its 95 % interval, as scores of result.json are."""


def heldout_scores(run: Path) -> Iterator[HeldoutScore]:
    """Those after the run, or from before its first step where it has not ended; nothing where there are none.

    Raises:
        UserError: a file out of form.
    """
    file = run / FILE
    if not file.is_file():
        return
    try:
        table = read_json(file)
        values = table.get("after", table["before"])
        for measure, environments in _measures(values).items():
            for name, of_tasks in environments.items():
                if of_tasks:
                    yield HeldoutScore(name, measure, _score([float(v) for v in of_tasks.values()], measure))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: no held-out tasks of nano3 rlvr or rlhf ({type(error).__name__}: {error})") from error


def _measures(values: Mapping[str, Any]) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """By measure; a run of rlvr has one, which it does not name."""
    inner = [each for of_name in values.values() for each in of_name.values()]
    return values if all(isinstance(each, Mapping) for each in inner) else {REWARD: values}


def _score(values: list[float], measure: str) -> dict[str, Any]:
    low, high = middle95(bootstrap_means(values, seed=0))
    mean = sum(values) / len(values)
    return {"value": mean, "n": len(values), "low": low, "high": high, "higher_is_better": measure not in LOWER}
