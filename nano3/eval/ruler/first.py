"""A first look with RULER: one cheap task at the lengths that a model was trained on, and what time an evaluation will
take."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.eval.prompt import Prompt
from nano3.eval.ruler import find_task
from nano3.eval.ruler.templates import NOISE

if TYPE_CHECKING:
    from nano3.eval.prompt import Answer, Target
    from nano3.eval.store import SampleKey

TASK, SAMPLES = "niah_single_1", 20
LENGTHS = (512, 1024, 2048, 4096)
"""Tokens; a first look goes no further whatever the model was trained for."""
PROBE_PROMPT, PROBE_ANSWER = 256, 16
"""Tokens of the two requests that the speed is measured with."""


def first_lengths(model: str | None) -> tuple[int, ...]:
    """The lengths of a first look at a model of this machine: those it was trained for. None: a server's, all."""
    longest = LENGTHS[-1] if model is None else trained_length(model)
    return tuple(length for length in LENGTHS if length <= longest) or LENGTHS[:1]


def trained_length(model: str) -> int:
    """Tokens of the longest rows that a run was trained on; what the model was made for where no run tells.

    Raises:
        UserError: no such model, or its configuration cannot be read.
    """
    from nano3.eval.lm.model import max_positions

    try:
        run = tomllib.loads((Path(model) / "config.toml").read_text("utf-8"))
        return max([run["data"]["seq_len"], *map(int, run.get("context", {}).get("lengths", {}))])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return max_positions(model)


def estimate_seconds(target: Target, left: Sequence[SampleKey]) -> float:
    """At most about so many seconds for these samples: their tokens at the speeds of one prompt and of one answer.

    Samples that are answered together share steps, so that it takes less; very long prompts take more.
    """
    noise = target.encode(" ".join(NOISE * (1 + PROBE_PROMPT // len(NOISE))))[:PROBE_PROMPT]
    _timed(target, noise[:8], PROBE_ANSWER)  # the first request sets up what later ones find ready
    prompt, _ = _timed(target, noise, 1)
    whole, answer = _timed(target, noise, PROBE_ANSWER)
    token = max(0.0, whole - prompt) / max(1, answer.output_tokens - 1)
    new = sum(find_task(task).max_new_tokens for task, _, _ in left)
    return sum(length or 0 for _, length, _ in left) * prompt / len(noise) + new * token


def _timed(target: Target, ids: list[int], new: int) -> tuple[float, Answer]:
    start = time.perf_counter()
    ((_, answer),) = target.generate([("probe", Prompt(ids=tuple(ids), max_tokens=new))])
    return time.perf_counter() - start, answer
