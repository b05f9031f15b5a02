"""Which sequences a rank reads in a step, read one step ahead."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nano3.config.schema import TrainConfig


class BatchSource(Protocol):
    """Training data by global index: a sequence depends on its index alone, never on the number of ranks.

    A batch is a dataclass with `n_targets` and, for error reports, `documents`; tensors in it are moved to the device.
    """

    def batch(self, start: int, count: int) -> Any:
        """Sequences start .. start + count - 1."""
        ...


@dataclass(frozen=True)
class Plan:
    """Micro-batches of one rank."""

    batch_size: int
    """Sequences in a step, over all ranks."""
    micro_batch_size: int
    """Sequences in a forward pass of one rank."""
    rank: int
    """This rank."""
    size: int
    """Number of ranks."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.batch_size // (self.micro_batch_size * self.size)

    def starts(self, step: int) -> list[int]:
        """Global index of the first sequence of each of this rank's micro-batches in step `step` (from 0)."""
        stride = self.size * self.micro_batch_size
        first = step * self.batch_size + self.rank * self.micro_batch_size
        return [first + a * stride for a in range(self.accumulation)]


def make_plan(cfg: TrainConfig, rank: int, size: int) -> Plan:
    """The plan of one rank.

    Raises:
        ValueError: batch_size cannot be shared out evenly.
    """
    if cfg.batch_size % (cfg.micro_batch_size * size):
        raise ValueError(
            f"train.batch_size {cfg.batch_size} is not a multiple of train.micro_batch_size "
            f"{cfg.micro_batch_size} x {size} ranks: change one of them"
        )
    return Plan(cfg.batch_size, cfg.micro_batch_size, rank, size)


class Feed:
    """Reads the micro-batches of a step while the previous step computes."""

    def __init__(self, source: BatchSource, plan: Plan, last_step: int) -> None:
        self.source, self.plan, self.last_step = source, plan, last_step
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nano3-feed")
        self._ahead: dict[int, Future[list[Any]]] = {}

    def get(self, step: int) -> list[Any]:
        """This rank's micro-batches of step `step` (from 0), on the CPU."""
        ready = self._ahead.pop(step, None) or self._pool.submit(self._read, step)
        batches = ready.result()
        if step + 1 < self.last_step:
            self._ahead = {step + 1: self._pool.submit(self._read, step + 1)}
        return batches

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> list[Any]:
        return [self.source.batch(start, self.plan.micro_batch_size) for start in self.plan.starts(step)]


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` (a dataclass) with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    tensors = {
        field.name: getattr(batch, field.name).to(device, non_blocking=True)
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **tensors)
