"""Which sequences a rank reads in a step, read one step ahead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nano3.config.schema import PretrainConfig
from nano3.data.blend import Blend


class BatchSource(Protocol):
    """Training data by global index: a sequence depends on its index alone, never on the number of ranks.

    A batch is a dataclass with `n_targets` and, for error reports, `documents`; tensors in it are moved to the device.
    """

    def batch(self, start: int, count: int) -> Any:
        """Sequences start .. start + count - 1."""
        ...


@dataclass(frozen=True)
class Plan:
    """Micro-batches of one rank in the steps of one sequence length."""

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

    def seq_len(self, step: int) -> int:
        """Sequence length of step `step` (from 0)."""
        return int(self._turns.category(step)[0])

    def read(self, step: int, sources: Mapping[int, BatchSource]) -> list[Any]:
        """This rank's micro-batches of step `step`, from the source of its length."""
        name, earlier = self._turns.category(step)
        plan, source = self._plans[int(name)], sources[int(name)]
        return [source.batch(start, plan.micro_batch_size) for start in plan.starts(earlier)]


def make_plans(cfg: PretrainConfig, rank: int, size: int) -> Plans:
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


class Feed:
    """Reads the micro-batches of a step while the previous step computes."""

    def __init__(self, sources: Mapping[int, BatchSource], plans: Plans, last_step: int) -> None:
        self.sources, self.plans, self.last_step = sources, plans, last_step
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
        return self.plans.read(step, self.sources)


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
