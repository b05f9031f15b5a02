"""Expert parallelism: each process holds some experts of every block, and tokens travel to those that they chose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nano3.config.errors import UserError
from nano3.model.moe import Experts
from nano3.parallel.collectives import all_to_all

WEIGHTS = ("up_proj", "down_proj")


class Exchange:
    """Stands in for `Experts.forward`: sends each token to the processes of its experts, and takes the results back.

    Every process makes all the exchanges, also with no token of its own or none for its experts. So all processes of
    the group must call it equally often.
    """

    def __init__(self, experts: Experts, group: Any) -> None:
        """`experts`, whose weights are DTensors over `group`, the first process with the first experts."""
        self.experts, self.group, self.size = experts, group, dist.get_world_size(group)
        self.compute = experts.forward

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x (S, D), the experts (S, K) int64 of each token and their weights (S, K) -> (S, D), summed over experts."""
        chosen, top_k = expert_ids.flatten(), expert_ids.shape[1]
        order = torch.argsort(chosen, stable=True)  # (S * K) by expert, and so by process
        tokens = order // top_k
        sent, received, theirs = self._splits(chosen)
        rows = all_to_all(copies(x, order, top_k), sent, received, self.group)
        results = all_to_all(self._own(rows, theirs), received, sent, self.group)
        wide = torch.promote_types(x.dtype, torch.float32)
        gates = weights.flatten()[order].to(wide).unsqueeze(1)
        return torch.zeros(x.shape, dtype=wide, device=x.device).index_add(0, tokens, results * gates).to(x.dtype)

    def _splits(self, chosen: Tensor) -> tuple[list[int], list[int], Tensor]:
        """Rows for each process, rows that come from each, and (processes, own experts) int64 which these are for."""
        n_experts = self.experts.up_proj.shape[0]
        counts = torch.zeros(n_experts, dtype=torch.int64, device=chosen.device)
        counts.scatter_add_(0, chosen, torch.ones_like(chosen))
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts, group=self.group)
        counts, theirs = counts.view(self.size, -1), theirs.view(self.size, -1)
        return counts.sum(1).tolist(), theirs.sum(1).tolist(), theirs

    def _own(self, rows: Tensor, theirs: Tensor) -> Tensor:
        """The own experts' results for rows (R, D), which lie by process and then by expert."""
        experts = torch.arange(theirs.shape[1], device=rows.device).repeat(self.size)
        ids = torch.repeat_interleave(experts, theirs.flatten(), output_size=len(rows)).unsqueeze(1)
        ones = torch.ones(ids.shape, dtype=torch.float32, device=rows.device)
        with _local_weights(self.experts):
            return self.compute(rows, ids, ones)


def copies(x: Tensor, order: Tensor, n: int) -> Tensor:
    """x (S, D) -> (S * n, D): of `n` copies of each row in a line, those at `order` (S * n), a permutation.

    Gradients of a row's copies are added in float32, as where experts are not divided.
    """
    return _Copies.apply(x, order, n)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.shape = len(x), n
        return x.index_select(0, order // n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        (order,) = ctx.saved_tensors
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient[places].unflatten(0, ctx.shape).sum(1, dtype=wide)
        return total.to(gradient.dtype), None, None


def divide_experts(model: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Divide the experts of every block of `model` over the processes of `mesh` (one axis), in place.

    Returns:
        The new parameters: DTensors, each process with some experts.

    Raises:
        UserError: experts that have adapters.
    """
    divided: set[nn.Parameter] = set()
    for experts in (module for module in model.modules() if isinstance(module, Experts)):
        if adapters := [name for name, _ in experts.named_parameters() if name not in WEIGHTS]:
            raise UserError(
                f"parallel.expert divides experts, not adapters such as {adapters[0]} of theirs: choose lora.targets "
                "without experts, or --set parallel.expert=1"
            )
        for name in WEIGHTS:
            whole = experts.get_parameter(name)
            local = distribute_tensor(whole.detach(), mesh, [Shard(0)], src_data_rank=None)
            own = nn.Parameter(local, requires_grad=whole.requires_grad)
            experts.register_parameter(name, own)
            divided.add(own)
        experts.forward = Exchange(experts, mesh.get_group())
    return divided


@contextmanager
def _local_weights(experts: Experts) -> Iterator[None]:
    """Inside, the parameters are the ones of the own experts, as ordinary tensors."""
    held = dict(experts._parameters)
    own = {name: value.to_local() for name, value in held.items() if isinstance(value, DTensor)}
    experts._parameters.update(own)  # pyright: ignore
    try:
        yield
    finally:
        experts._parameters.update(held)
