"""A judge that is a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.feedback.comparison import Comparison, JudgeStoppedError, Verdict
from nano3.rl.genrm import RANKS, SCORES, Judgement, parse_judgement


class FunctionJudge:
    """Calls `function(messages, response_1, response_2)` for each comparison.

    It gives (score_1, score_2, ranking), whole or broken numbers from 1 to 5, 1 to 5 and 1 to 6, or the JSON text of a
    judgement; anything else is a judgement that cannot be read. An exception of it stops the judge.
    """

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.calls = 0
        self._function, self._name = function, name or getattr(function, "__name__", "judge")

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """See PairJudge."""
        found = [self._one(each) for each in comparisons]
        self.calls += len(found)
        return found

    def _one(self, asked: Comparison) -> Verdict:
        try:
            said = self._function([dict(each) for each in asked.task.messages], asked.response_1, asked.response_2)
        except (UserError, JudgeStoppedError):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise JudgeStoppedError(f"judge {self._name}: {reason}") from error
        return Verdict(_read(said), repr(said)[:1000])


def _read(said: Any) -> Judgement | None:
    if isinstance(said, str):
        return parse_judgement(said)
    if not isinstance(said, Sequence) or len(said) != len(Judgement._fields):
        return None
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in said):
        return None
    values = [value if isinstance(value, int) else float(value) for value in said]
    fits = all(low <= v <= high for v, (low, high) in zip(values, (SCORES, SCORES, RANKS), strict=True))
    return Judgement(*values) if fits else None
