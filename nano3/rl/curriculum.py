"""Which tasks each batch draws: pass rates from a Gaussian whose mean falls over training (report section 3.2).

Unpublished in the report, so settings here: the Gaussian's width, its means at the start and the end, and the number
of bins of pass rates.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nano3.config.errors import UserError

log = logging.getLogger(__name__)


def target_counts(
    bin_centers: Sequence[float], mean: float, sigma: float, batch: int, capacities: Sequence[int] | None = None
) -> list[int]:
    """How many tasks of a batch each bin of pass rates gives: a Gaussian's shares in whole numbers.

    Shares are rounded down and what is left goes to the largest remainders, the first bin where they are equal. What a
    bin cannot give goes, one task after the other, to the bin that has most tasks left.

    Args:
        bin_centers: pass rate that each bin stands for.
        mean, sigma: of the Gaussian.
        batch: tasks to draw.
        capacities: tasks that each bin has; None: any number.

    Returns:
        Numbers of tasks, as `bin_centers`; together `batch`, or all tasks where there are fewer.

    Raises:
        ValueError: a sigma that is not above 0, a batch below 0, no bins, or as many capacities as no bins have.
    """
    if not bin_centers or not sigma > 0 or batch < 0:
        raise ValueError(f"sigma is {sigma} and batch {batch}: sigma must be above 0, batch 0 or more, with bins")
    counts = largest_remainder(_gaussian(bin_centers, mean, sigma), batch)
    if capacities is None:
        return counts
    if len(capacities) != len(counts) or min(capacities) < 0:
        raise ValueError(f"capacities are {list(capacities)}; give one of 0 or more for each of {len(counts)} bins")
    counts = [min(count, room) for count, room in zip(counts, capacities, strict=True)]
    for _ in range(min(batch, sum(capacities)) - sum(counts)):
        left = [room - count for count, room in zip(counts, capacities, strict=True)]
        counts[left.index(max(left))] += 1
    return counts


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """`total` in whole numbers in proportion to `shares`, which are not negative and not all 0."""
    whole = math.fsum(shares)
    exact = [total * share / whole for share in shares]
    counts = [math.floor(number) for number in exact]
    # Rounded, so that shares which differ by their last digit alone count as equal.
    order = sorted(range(len(exact)), key=lambda i: (-round(exact[i] - counts[i], 9), i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def linear_mean(start: float, end: float, batches: int, number: int) -> float:
    """The Gaussian's mean for batch `number` of `batches`: `start` for the first (0), `end` for the last and after."""
    if batches < 2:
        return start
    return start + (end - start) * min(number, batches - 1) / (batches - 1)


def bin_of(rate: float, bins: int) -> int:
    """The bin of a pass rate, of `bins` of equal width; that of a rate of 1 is the last."""
    return min(bins - 1, int(rate * bins))


@dataclass(frozen=True)
class CurriculumSettings:
    """How tasks are drawn."""

    batches: int
    """Over which the mean falls."""
    batch: int
    """Tasks of a batch."""
    start_mean: float = 0.75
    end_mean: float = 0.25
    sigma: float = 0.15
    bins: int = 10
    """Of pass rates from 0 to below 1, of equal width."""
    most_draws: int = 0
    """Draws after which a task rests until all tasks of its domain have as many; 0: any number. Few tasks near the mean
    are drawn often; with a limit the drawn pass rates follow the mean less closely, at 1 they do not follow it at all
    over a whole round of the tasks."""
    stall_batches: int = 50
    """Batches without a rise of the reward after which the pass rates are measured anew; 0: never."""
    stall_rise: float = 0.01
    """Least rise of the mean reward from one such stretch to the next that counts as one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batches, self.batch, self.bins) < 1 or not self.sigma > 0:
            raise UserError("curriculum: batches, batch, bins and sigma must be above 0")
        if min(self.stall_batches, self.most_draws) < 0:
            raise UserError("curriculum: stall_batches and most_draws must be 0 or more")
        if not (0 <= self.end_mean <= 1 and 0 <= self.start_mean <= 1):
            raise UserError("curriculum: start_mean and end_mean are pass rates, from 0 to 1")


class Curriculum:
    """Draws the tasks of each batch, by domain in fixed proportions; what was drawn before decides what comes next.

    A task that always passes teaches nothing and is left out; a domain of such tasks alone rests. Of the tasks of a
    bin those that were drawn least come first, in random order. No batch has a task twice, unless its domain has fewer
    tasks left than the batch takes.
    """

    def __init__(
        self,
        settings: CurriculumSettings,
        rates: Mapping[str, Mapping[str, float]],
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Begin before the first batch.

        Args:
            settings: how tasks are drawn.
            rates: measured pass rate by task id, by domain.
            shares: of each domain in a batch; None: all the same.

        Raises:
            UserError: a rate outside [0, 1], no task below 1, or a share that is none.
        """
        self.settings = settings
        self.shares = dict.fromkeys(rates, 1.0) if shares is None else dict(shares)
        if self.shares.keys() != rates.keys() or not all(0 < s < math.inf for s in self.shares.values()):
            raise UserError(
                f"curriculum: shares of {', '.join(self.shares)} for tasks of {', '.join(rates)}; give each domain one "
                "above 0"
            )
        self.number = 0
        """Of the batch that comes next."""
        self._rewards: list[float] = []
        self._draws: dict[str, dict[str, int]] = {domain: {} for domain in rates}
        self._owed = dict.fromkeys(rates, 0.0)
        _check(rates)
        self.rates = {domain: dict(rates[domain]) for domain in self.shares}
        if len(self.resting) == len(self.rates):
            raise UserError(
                f"curriculum: {', '.join(self.rates)}: no task fails at least once, all are too easy; give harder tasks"
            )

    def profile(self, rates: Mapping[str, Mapping[str, float]]) -> None:
        """Go on with pass rates that were measured anew; the batch's number and what was drawn stay.

        A task that was not measured keeps its rate. A domain whose tasks all pass rests until a later profile, and the
        others take its place in the batches; where that holds for every domain, all go on with the rates from before.

        Raises:
            UserError: a rate outside [0, 1], or a domain that the curriculum does not have.
        """
        _check(rates)
        if unknown := rates.keys() - self.shares.keys():
            raise UserError(f"curriculum: {', '.join(sorted(unknown))} is none of its domains")
        merged = {domain: {**old, **rates.get(domain, {})} for domain, old in self.rates.items()}
        passed = _too_easy(merged)
        if len(passed) < len(merged):
            self.rates = merged
        if passed:
            effect = "the pass rates from before stay" if len(passed) == len(merged) else "it is not drawn"
            log.warning("curriculum: every task of %s passes; %s", ", ".join(passed), effect)
        self._rewards.clear()

    @property
    def resting(self) -> list[str]:
        """Domains that are not drawn: all their tasks pass."""
        return _too_easy(self.rates)

    @property
    def mean(self) -> float:
        """Of the Gaussian of the next batch."""
        own = self.settings
        return linear_mean(own.start_mean, own.end_mean, own.batches, self.number)

    def draw(self) -> list[tuple[str, str]]:
        """(domain, task id) of each task of the next batch, domains mixed."""
        rng = random.Random(f"{self.settings.seed}/{self.number}")
        drawn = self._drawn(self._sizes(), self.mean, rng)
        self.number += 1
        return drawn

    def draw_more(self, missing: Mapping[str, int], batch: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Further tasks for the batch that was drawn last, in place of groups from which nothing is learnt.

        Args:
            missing: how many, by domain.
            batch: tasks of the batch so far, which are not drawn again while their domain has others.
        """
        own = self.settings
        rng = random.Random(f"{own.seed}/{self.number - 1}/{len(batch)}")
        mean = linear_mean(own.start_mean, own.end_mean, own.batches, self.number - 1)
        return self._drawn(missing, mean, rng, batch)

    def _drawn(
        self, sizes: Mapping[str, int], mean: float, rng: random.Random, batch: Collection[tuple[str, str]] = ()
    ) -> list[tuple[str, str]]:
        drawn = []
        for domain, size in sizes.items():
            besides = {task for name, task in batch if name == domain}
            drawn += [(domain, task) for task in self._draw(domain, size, mean, rng, besides)]
        rng.shuffle(drawn)
        return drawn

    def note_reward(self, reward: float) -> None:
        """Tell the mean reward of the batch that was drawn last, less what its pass rates let expect."""
        self._rewards.append(float(reward))

    @property
    def stalled(self) -> bool:
        """Whether the reward has not risen over two stretches of `stall_batches`: time to measure pass rates anew."""
        n = self.settings.stall_batches
        if not n or len(self._rewards) < 2 * n:
            return False
        before, now = self._rewards[-2 * n : -n], self._rewards[-n:]
        return sum(now) / n - sum(before) / n < self.settings.stall_rise

    def state(self) -> dict[str, Any]:
        """JSON values with which `restore` goes on."""
        return {
            "settings": asdict(self.settings), "shares": self.shares, "rates": self.rates, "number": self.number,
            "rewards": self._rewards, "draws": self._draws, "owed": self._owed,
        }  # fmt: skip

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Curriculum:
        """The curriculum of a saved `state()`."""
        made = cls(CurriculumSettings(**state["settings"]), state["rates"], state["shares"])
        made.number, made._rewards = state["number"], list(state["rewards"])
        made._draws = {domain: dict(draws) for domain, draws in state["draws"].items()}
        made._owed = dict(state["owed"])
        return made

    def _sizes(self) -> dict[str, int]:
        """Tasks that each domain gives to the next batch. The remainder of a domain's share is carried to the next
        batch, so that a small domain has its turn too."""
        resting = self.resting
        domains = [domain for domain in self.shares if domain not in resting]
        whole = math.fsum(self.shares[domain] for domain in domains)
        for domain in domains:
            self._owed[domain] += self.settings.batch * self.shares[domain] / whole
        sizes = dict.fromkeys(domains, 0)
        for _ in range(self.settings.batch):
            # Rounded, so that domains which differ by their last digit alone count as equal.
            most = max(domains, key=lambda domain: round(self._owed[domain], 9))
            sizes[most] += 1
            self._owed[most] -= 1
        return sizes

    def _draw(self, domain: str, size: int, mean: float, rng: random.Random, besides: Collection[str]) -> list[str]:
        n, draws, drawn = self.settings.bins, self._draws[domain], list[str]()
        centers = [(i + 0.5) / n for i in range(n)]
        while len(drawn) < size:
            bins = self._bins(domain)
            bins = [[task for task in tasks if task not in besides] for tasks in bins]
            if not any(bins):
                besides = ()
                continue
            left = size - len(drawn)
            counts = target_counts(centers, mean, self.settings.sigma, left, [len(tasks) for tasks in bins])
            for tasks, count in zip(bins, counts, strict=True):
                shuffled = rng.sample(tasks, len(tasks))
                chosen = sorted(shuffled, key=lambda task: draws.get(task, 0))[:count]
                draws.update((task, draws.get(task, 0) + 1) for task in chosen)
                drawn += chosen
        return drawn

    def _bins(self, domain: str) -> list[list[str]]:
        """Tasks of the domain that can fail and may be drawn, by pass rate."""
        n, draws, most = self.settings.bins, self._draws[domain], self.settings.most_draws
        able = {task: rate for task, rate in self.rates[domain].items() if rate < 1}
        if most and all(draws.get(task, 0) >= most for task in able):
            draws.clear()
        bins: list[list[str]] = [[] for _ in range(n)]
        for task, rate in able.items():
            if not most or draws.get(task, 0) < most:
                bins[bin_of(rate, n)].append(task)
        return bins


def _too_easy(rates: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [domain for domain, of_tasks in rates.items() if all(rate == 1 for rate in of_tasks.values())]


def _check(rates: Mapping[str, Mapping[str, float]]) -> None:
    for domain, of_tasks in rates.items():
        for task, rate in of_tasks.items():
            if not 0 <= rate <= 1:
                raise UserError(f"curriculum: pass rate of {domain} task {task} is {rate}; it must be from 0 to 1")


def _gaussian(centers: Sequence[float], mean: float, sigma: float) -> list[float]:
    """Densities at the centers, the largest 1: far from the mean all would underflow to 0."""
    exponents = [-0.5 * ((center - mean) / sigma) ** 2 for center in centers]
    return [math.exp(exponent - max(exponents)) for exponent in exponents]
