"""Metrics by name, added up over the micro-batches and ranks of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.train.world import World

Metric = tuple[Tensor, Tensor | float | None]
"""A sum, and the count by which the whole step's sum is divided; None: nothing divides the sum."""


class Tally:
    """Adds up metrics over the ranks of the loss in one all-reduce a step, and over the stages of a pipeline in one
    more, under names that all have agreed on.

    A name that comes up for the first time, on one rank or on all, costs that step two more collectives.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._names: list[str] = []

    def add_up(self, parts: Sequence[Mapping[str, Metric]], extra: Tensor) -> tuple[dict[str, float], list[float]]:
        """Metrics of the step, and the sums of `extra`, over the ranks of the loss; each must call.

        Args:
            parts: this rank's metrics of each micro-batch.
            extra: (N,) float64 numbers to add up beside them.

        Returns:
            Value by name: sum / count over all micro-batches and ranks that report it. A name whose count is 0 is left
            out.

        Raises:
            UserError: a metric has a count here and none there.
        """
        found = {name: _added(name, parts, extra) for name in dict.fromkeys(name for part in parts for name in part)}
        unknown = [name for name in found if name not in self._names]
        flag = extra.new_tensor([float(len(unknown))])
        n_known = len(self._names)
        sums = self._sum(found, self._names, torch.cat([flag, extra]))
        head, known = sums[: 1 + len(extra)], sums[1 + len(extra) :]
        if head[0]:
            found_there = self._world.pipeline.gather(self._world.loss.gather(unknown))
            theirs = [name for ranks in found_there for names in ranks for name in names]
            self._names += [name for name in dict.fromkeys(theirs) if name not in self._names]
            known += self._sum(found, self._names[n_known:], extra.new_zeros(0))
        rows = {name: known[3 * i : 3 * i + 3] for i, name in enumerate(self._names)}
        values = {name: _value(name, *row) for name, row in rows.items()}
        return {name: value for name, value in values.items() if value is not None}, head[1:]

    def _sum(self, found: Mapping[str, Tensor], names: Sequence[str], before: Tensor) -> list[float]:
        """`before` and the row of each name, over all ranks."""
        none = before.new_zeros(3)
        return self._world.report(torch.cat([before, *(found.get(name, none) for name in names)])).tolist()


def _added(name: str, parts: Sequence[Mapping[str, Metric]], like: Tensor) -> Tensor:
    """(3,) over this rank's micro-batches: the sum, its count, and how many of them have no count."""
    mine = [part[name] for part in parts if name in part]
    sums = torch.stack([value.detach().to(like) for value, _ in mine]).sum()
    counts = [torch.as_tensor(count).detach().to(like) for _, count in mine if count is not None]
    count = torch.stack(counts).sum() if counts else like.new_zeros(())
    return torch.stack([sums, count, like.new_tensor(float(len(mine) - len(counts)))])


def _value(name: str, total: float, count: float, uncounted: float) -> float | None:
    if uncounted and count:
        raise UserError(f"the loss reports the metric {name} with a count in one micro-batch and without in another")
    if uncounted:
        return total
    return total / count if count else None
