"""Packed text by optimizer step: which rows each rank reads, and which steps have which sequence length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nano3.config.run import RunConfig
from nano3.data.tokens.blend import Blend


class RowSource(Protocol):
    """Rows by global index: a row depends on its index alone, never on the number of ranks."""

    def batch(self, start: int, count: int) -> Any:
        """Rows start .. start + count - 1."""
        ...


@dataclass(frozen=True)
class Plan:
    """Micro-batches of one rank in the steps of one sequence length."""

    batch_size: int
    """Sequences in a step, over all ranks."""
    micro_batch_size: int
    """Sequences in a forward pass of one rank."""
    rank: int
    """This rank, among those that read different data."""
    size: int
    """Number of such ranks."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.batch_size // (self.micro_batch_size * self.size)

    def starts(self, step: int) -> list[int]:
        """Index of the first sequence of each of this rank's micro-batches in step `step` of this length (from 0)."""
        stride = self.size * self.micro_batch_size
        first = step * self.batch_size + self.rank * self.micro_batch_size
        return [first + a * stride for a in range(self.accumulation)]


class Plans:
    """The plan of each sequence length, and which steps have which length: a function of the step alone.

    Every step has the same number of tokens; the lengths follow each other so that each has its share of the steps, and
    so of the tokens, at every point of the run, to within a step.
    """

    def __init__(self, plans: Mapping[int, Plan], shares: Mapping[int, float]) -> None:
        self._plans = plans
        self._turns = Blend({str(length): shares[length] for length in plans})

    @property
    def micro_batches(self) -> dict[int, int]:
        """Micro-batches of one rank in a step, by sequence length."""
        return {length: plan.accumulation for length, plan in self._plans.items()}

    def seq_len(self, step: int) -> int:
        """Sequence length of step `step` (from 0)."""
        return int(self._turns.category(step)[0])

    def read(self, step: int, sources: Mapping[int, RowSource]) -> list[Any]:
        """This rank's micro-batches of step `step`, from the source of its length."""
        name, earlier = self._turns.category(step)
        plan, source = self._plans[int(name)], sources[int(name)]
        return [source.batch(start, plan.micro_batch_size) for start in plan.starts(earlier)]


def make_plans(cfg: RunConfig, rank: int, size: int) -> Plans:
    """The plans of one rank. train.batch_size and train.micro_batch_size count sequences of data.seq_len, the longest.

    Raises:
        ValueError: a batch cannot be shared out evenly.
    """
    train, longest = cfg.train, cfg.data.seq_len
    if train.batch_size % (train.micro_batch_size * size):
        raise ValueError(
            f"train.batch_size {train.batch_size} is not a multiple of train.micro_batch_size "
            f"{train.micro_batch_size} x {size} ranks: change one of them"
        )
    plans = {}
    for length in cfg.lengths:
        rows, most = train.batch_size * longest // length, train.micro_batch_size * longest // length
        if rows % size:
            raise ValueError(f"a step has {rows} sequences of {length} tokens, which {size} ranks cannot share evenly")
        # From the batch alone, so that another number of ranks makes the same micro-batches and balance losses.
        each = rows // math.gcd(rows, train.batch_size // train.micro_batch_size)
        micro = next(count for count in range(most, 0, -1) if each % count == 0)
        plans[length] = Plan(rows, micro, rank, size)
    return Plans(plans, cfg.lengths)


class TextSteps:
    """The step source of training on text (nano3.train.feed.StepSource): rows by index, so that it has no state."""

    ahead = True

    def __init__(self, sources: Mapping[int, RowSource], plans: Plans) -> None:
        """`sources`: training rows of each of the lengths that `plans` has."""
        self.sources, self.plans = sources, plans

    def step(self, n: int) -> list[Any]:
        """This rank's micro-batches of step `n` (from 0)."""
        return self.plans.read(n, self.sources)

    def state(self) -> dict[str, Any]:
        """Nothing: the number of the step says all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
