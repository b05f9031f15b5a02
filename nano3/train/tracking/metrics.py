"""metrics.jsonl: one flushed JSON line a measurement, and nothing in it twice after a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.report import read_lines

CLOCK = "clock"
"""Key of the sub-object with wall-clock values (seconds, tokens_per_second, mfu): all else is reproducible."""
FINAL = "final"
"""Mark of lines written after the last step; a resume measures them again."""

MOST = 1 << 63
"""No count or time of a run reaches it."""
_SCORES = ("loss", "reward", "bits_per_byte")


class MetricsWriter:
    """Appends lines to RUN/metrics.jsonl.

    Every line has `kind` (train, heldout or load), `step`, `tokens`; wall-clock values sit under `clock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(
        self, kind: str, step: int, tokens: int, values: dict[str, Any], clock: dict[str, float] | None = None
    ) -> None:
        """Append one line; it reaches the operating system before this returns."""
        line: dict[str, Any] = {"kind": kind, "step": step, "tokens": tokens, **values}
        if clock:
            line[CLOCK] = clock
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; the last checkpoint is intact") from error

    def sync(self) -> None:
        """Make every line survive a power failure; called before a checkpoint that comes after them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a torn last line (the process was killed), and what is no line of a metrics
    file, is left out."""
    return [line for line in read_lines(path) if _is_measurement(line)]


def numbers(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The lines in which this metric is a number."""
    return [line for line in lines if isinstance(line.get(name), int | float)]


def _is_measurement(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    counts = [line.get("step"), line.get("tokens"), line.get("seq_len") or 0, line.get("targets") or 0]
    scores = [line[name] for name in _SCORES if line.get(name) is not None]
    clock = line.get(CLOCK, {})
    return (
        all(isinstance(count, int) and abs(count) < MOST for count in counts)
        and all(isinstance(score, float) or (isinstance(score, int) and abs(score) < MOST) for score in scores)
        and isinstance(clock, dict)
        and isinstance(seconds := clock.get("seconds", 0.0), int | float)
        and abs(seconds) < MOST
    )


def cut_metrics(path: Path, step: int, keep: Collection[str] = ()) -> None:
    """Keep only lines up to `step`, so that a run resumed there writes the file that an uninterrupted run writes.

    Args:
        path: metrics.jsonl.
        step: where the run goes on.
        keep: kinds of lines of which those marked FINAL stay too.
    """
    if not path.exists():
        return
    lines = [line for line in read_metrics(path) if line["step"] <= step]
    kept = [line for line in lines if not line.get(FINAL) or line["kind"] in keep]
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`lines` without wall-clock values: equal for two runs that computed the same."""
    return [{key: value for key, value in line.items() if key != CLOCK} for line in lines]
