"""What saved rollouts come to, over steps and by environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nano3.rl.rollout_files import SavedSample
from nano3.rl.saved.groups import SavedGroup, passed


@dataclass
class Tally:
    """Counts over groups. Groups that an error dropped count as such alone."""

    groups: int = 0
    samples: int = 0
    """Of groups that were not dropped, as all that follows."""
    reward: float = 0.0
    """Sum over the samples."""
    passes: int = 0
    truncated: int = 0
    drawn: int = 0
    """Tokens."""
    no_variance: int = 0
    """Groups."""
    faults: Counter[str] = field(default_factory=Counter)
    """Groups that were dropped, by kind of the first fault."""

    def add(self, group: SavedGroup) -> None:
        """Count a group."""
        self.groups += 1
        if group.fault:
            self.faults[group.fault] += 1
            return
        self.no_variance += group.no_variance
        for sample in group.samples:
            self._add_sample(sample)

    def __iadd__(self, other: Tally) -> Tally:
        for name in ("groups", "samples", "reward", "passes", "truncated", "drawn", "no_variance", "faults"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def table(self) -> dict[str, Any]:
        """Means and shares as JSON values; None where there is nothing to divide by."""
        kept = self.groups - self.faults.total()
        return {
            "groups": self.groups,
            "samples": self.samples,
            "reward": _share(self.reward, self.samples),
            "pass_rate": _share(self.passes, self.samples),
            "zero_variance": _share(self.no_variance, kept),
            "truncated": _share(self.truncated, self.samples),
            "tokens": _share(self.drawn, self.samples),
            "faults": dict(self.faults),
        }

    def _add_sample(self, sample: SavedSample) -> None:
        self.samples += 1
        self.reward += sample.reward.value if sample.reward else 0.0
        self.passes += passed(sample)
        self.truncated += sample.truncated
        self.drawn += sample.n_drawn


def tally(groups: Iterable[SavedGroup]) -> dict[str, Tally]:
    """By environment, in order of appearance."""
    found: dict[str, Tally] = {}
    for group in groups:
        found.setdefault(group.environment, Tally()).add(group)
    return found


def together(tallies: Iterable[Tally]) -> Tally:
    """Their sum."""
    total = Tally()
    for one in tallies:
        total += one
    return total


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
