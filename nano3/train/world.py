"""The processes of a run, as torchrun's environment describes them; alone when there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from nano3.config.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among its peers. Every collective is a no-op in a world of one."""

    rank: int = 0
    """Position of this process, from 0."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of this process."""
    background: Any = None
    """Gloo group for work beside the training loop (asynchronous checkpoints); None in a world of one."""
    control: Any = None
    """Gloo group of the training loop itself: two threads must never share a group. None in a world of one."""
    owns_group: bool = False
    """Whether `close` ends torch.distributed."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes metrics, charts and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def from_main(self, value: Any) -> Any:
        """The main rank's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def agree(self, error: BaseException | None) -> None:
        """Raise `error`, or a UserError for another rank's; every rank must call, so that none waits for a dead one."""
        problems = [problem for problem in self.gather(None if error is None else str(error)) if problem is not None]
        if error is not None:
            raise error
        if problems:
            raise UserError(problems[0])

    def close(self) -> None:
        """Leave torch.distributed, if `init_world` started it."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def init_world() -> World:
    """Join the processes that torchrun started (gloo on CPU, nccl on CUDA); a world of one without torchrun."""
    device = _local_device()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(device=device)
    owns = not dist.is_initialized()
    if owns:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    background, control = (dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None for _ in range(2))
    return World(dist.get_rank(), dist.get_world_size(), device, background, control, owns)


def attempt(action: Callable[[], object]) -> BaseException | None:
    """What went wrong in `action()`; None if nothing did."""
    try:
        action()
    except (Exception, CheckpointException) as error:
        return error
    return None


def _local_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
