"""What a step's groups are, as all ranks know it, and the figures of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nano3.rl.curriculum import bin_of
from nano3.rl.samples import Group


@dataclass(frozen=True)
class GroupFacts:
    """What all ranks know of a group."""

    place: int
    """In the step's batch."""
    environment: str
    task: str
    fault: str
    fault_message: str
    reward: float
    """Mean of the samples; 0 in a group with a fault."""
    pass_rate: float
    zero_variance: bool
    truncated: int
    samples: int
    drawn_tokens: int
    turns: int
    terms: Mapping[str, float] = field(default_factory=dict)
    """Further figures of a group without a fault, by name."""

    @classmethod
    def of(cls, place: int, group: Group, terms: Mapping[str, float] | None = None) -> GroupFacts:
        """Of a group of this rank."""
        rewards, n = group.rewards, len(group.samples)
        mean = 0.0 if group.fault else sum(rewards) / n
        return cls(
            place, group.environment, group.task.id, group.fault, group.fault_message, mean,
            0.0 if group.fault else group.pass_rate, not group.fault and min(rewards) == max(rewards),
            sum(sample.truncated for sample in group.samples), n,
            sum(sample.n_drawn for sample in group.samples), sum(sample.turns for sample in group.samples),
            dict(terms or {}),
        )  # fmt: skip

    @property
    def teaches(self) -> bool:
        """Whether a gradient can come from it."""
        return not (self.fault or self.zero_variance)


def step_figures(facts: Sequence[GroupFacts], environments: Iterable[str]) -> dict[str, float]:
    """Figures of a step by name; nano3.rl.training.steps has their meaning."""
    good = [fact for fact in facts if not fact.fault]
    samples = max(1, sum(fact.samples for fact in facts))
    found = {"reward": mean_of([f.reward for f in good]), "pass_rate": mean_of([f.pass_rate for f in good])}
    for name in environments:
        own = [fact for fact in good if fact.environment == name]
        if own:
            found[f"reward/{name}"] = mean_of([fact.reward for fact in own])
            found[f"pass_rate/{name}"] = mean_of([fact.pass_rate for fact in own])
    found |= {
        "zero_variance": sum(fact.zero_variance for fact in good) / max(1, len(good)),
        "truncated": sum(fact.truncated for fact in facts) / samples,
        "answer_tokens": sum(fact.drawn_tokens for fact in facts) / samples,
        "turns": sum(fact.turns for fact in facts) / samples,
        "groups": len(facts),
        "dropped": len(facts) - len(good),
    }
    names = dict.fromkeys(name for fact in good for name in fact.terms)
    found |= {name: mean_of([fact.terms[name] for fact in good if name in fact.terms]) for name in names}
    return found | dict(Counter(f"faults/{fact.environment}: {fact.fault}" for fact in facts if fact.fault))


def drawn_bins(
    facts: Sequence[GroupFacts], rates: Mapping[str, Mapping[str, float]], bins: int
) -> dict[str, list[int]]:
    """Tasks drawn by environment: counts by their pass rate, in bins."""
    found: dict[str, list[int]] = {}
    for fact in facts:
        counts = found.setdefault(fact.environment, [0] * bins)
        counts[bin_of(rates[fact.environment][fact.task], bins)] += 1
    return dict(sorted(found.items()))


def mean_of(values: Sequence[float]) -> float:
    """0 of none."""
    return sum(values) / max(1, len(values))
