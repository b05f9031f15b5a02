"""One training step of one process of many, without memory and without the others: it finds sizes that do not fit.

Tensors have shapes and types and no numbers (PyTorch's FakeTensorMode), and collectives return at once. Blocks of a
kind are alike, so one of each is enough, and so are short slices: longer ones only repeat the same.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.kernels.dispatch import ENVIRONMENT
from nano3.kernels.eager.experts import squared_relu_mlp
from nano3.kernels.eager.grouped import GroupedExperts
from nano3.model.forward_pass import Keys, Pass
from nano3.model.lm import LM, PassOptions
from nano3.model.moe import Experts
from nano3.parallel.context import Neighbours, SharedSequences
from nano3.parallel.experts import Exchange
from nano3.parallel.layout import CONTEXT, TENSOR, Layout
from nano3.parallel.plan import Sharding, shard
from nano3.parallel.precision import precision_of
from nano3.parallel.shards import share_of
from nano3.parallel.sharing import Sharing
from nano3.parallel.tensor import SharedTokens, divide_heads, sharing

TOKENS = 128
"""Tokens of a slice, or of a whole sequence; where heads are divided, of all who divide them."""
GROUPED_BYTES = 16
"""Grouped products take rows of multiples of so many bytes."""


PURPOSES: tuple[str, ...] = ("weights", "gradients", "experts", "slices", "heads")
"""What processes send each other: shards of weights and of gradients, tokens for experts, what slices of sequences need
of each other, tokens and results of divided heads."""


@dataclass(frozen=True)
class FakeStep:
    """A step that fitted."""

    blocks: str
    """Symbols of the blocks that it went through."""
    parameters: int
    """Numbers that the process held of their parameters, embeddings and output projection."""
    collectives: int
    """Calls of collectives, forward and backward."""
    received: dict[str, int]
    """Bytes that came from other processes, by purpose (PURPOSES)."""
    tokens: int
    """Of the one row, on this process."""
    seconds: float


def fake_step(
    model: ModelConfig,
    cfg: ParallelConfig,
    layout: Layout,
    rank: int,
    recompute: bool,
    blocks: Collection[int] | None = None,
) -> FakeStep:
    """Train process `rank` of `layout` on one row that is nothing, as on a GPU that computes in bfloat16.

    Args:
        model: the whole model.
        cfg: how shards travel.
        layout: of all processes.
        rank: which of them.
        recompute: compute blocks again in the backward pass.
        blocks: numbers of those of its stages in a pipeline, None: all. The step is one of a model of blocks as these
            are, with embeddings and output projection, and hands nothing to another stage.

    Raises:
        UserError: sizes that do not fit together, or a parameter without a gradient or with another number of values
            than is foreseen for this process; the line says which.
    """
    started = time.perf_counter()
    kinds = model.pattern if blocks is None else [model.pattern[number] for number in blocks]
    part, stage = replace(model, pattern="".join(dict.fromkeys(kinds))), replace(layout, pipeline=1)
    place = rank % stage.size
    with _fake_world(stage.size, place):
        shared = _shared(stage)
        lm = _sharded(part, cfg, stage, shared)
        lm.checkpoint_activations = recompute
        with FakeTensorMode(allow_non_fake_inputs=True), Received(shared) as calls:
            try:
                tokens = _step(lm, shared)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise UserError(f"a step of process {rank} does not fit: {_reason(error)}") from error
        held = _check(lm, share_of(part, stage, place, cfg.fsdp).parameters, rank)
    return FakeStep(part.pattern, held, calls.count, calls.bytes, tokens, time.perf_counter() - started)


def _sharded(part: ModelConfig, cfg: ParallelConfig, layout: Layout, shared: Sharing | None) -> LM:
    """The model of this process; meshes hold numbers, so they are built outside the mode without any."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        lm = LM(part)
    lm.compute_dtype = torch.bfloat16
    if isinstance(shared, SharedTokens):
        divide_heads(lm, shared.tensor)
    processes = init_device_mesh("cpu", (layout.size,), mesh_dim_names=("data",))
    if cfg.fsdp and layout.size > 1:
        precision = precision_of(cfg, torch.bfloat16, torch.device("cuda"))
        shard(lm, layout, processes, Sharding(precision, cfg.reshard_after_forward is not False))
    for experts in (module for module in lm.modules() if isinstance(module, Experts)):
        if isinstance(experts.forward, Exchange):
            experts.forward = _EvenExchange(experts, experts.forward.group)
        else:
            experts.forward = _Grouped(experts)
    return lm


def _shared(layout: Layout) -> Sharing | None:
    shape = (layout.replicate * layout.shard, layout.context, layout.tensor)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", CONTEXT, TENSOR))
    own = [mesh[name].get_group() if mesh[name].size() > 1 else None for name in (CONTEXT, TENSOR)]
    whole = init_device_mesh("cpu", (shape[0], shape[1] * shape[2]), mesh_dim_names=("data", "sequence"))
    return sharing(whole["sequence"].get_group(), *own)


def _step(lm: LM, shared: Sharing | None) -> int:
    """Forward and backward pass over one row -> its tokens on this process."""
    n_tensor = shared.size if isinstance(shared, SharedTokens) else 1
    tokens, rows = -(-TOKENS // n_tensor), 1 if shared is None else shared.each
    hidden = lm.hidden(torch.zeros(rows, tokens, dtype=torch.int64), slices=shared, **_around(shared, tokens))
    # The real loss asks for the places of its targets, which are numbers.
    loss = lm.lm_head(hidden.x).float().mean() + hidden.balance_loss
    loss.backward()
    return rows * tokens


def _around(shared: Sharing | None, tokens: int) -> PassOptions:
    """What lies around a process's `tokens` of each slice."""
    divided = isinstance(shared, SharedTokens)
    slices, length = (shared.slices, tokens * shared.size) if divided else (shared, tokens)
    neighbours = None
    if isinstance(slices, SharedSequences):
        neighbours = _OneDocument(slices, torch.zeros(1, slices.count * length, dtype=torch.int32))
    if divided:
        return {"joint": Pass(boundary=neighbours, context=neighbours)}
    return {"boundary": neighbours, "context": neighbours}


def _check(lm: LM, foreseen: int, rank: int) -> int:
    """Values that the process holds, each with a gradient, and as many as `foreseen`."""
    held = 0
    for name, parameter in lm.named_parameters():
        if parameter.grad is None or parameter.grad.shape != parameter.shape:
            raise UserError(f"a step of process {rank} leaves {name} without a gradient")
        held += (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
    if held != foreseen:
        raise UserError(
            f"process {rank} holds {held:,} parameters of {lm.cfg.pattern}, where {foreseen:,} are foreseen"
        )
    return held


class _Grouped:
    """Stands in for `Experts.forward` by the product that GPUs run, which needs no counts; for rows that it does not
    take by that of one expert."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        up, down = self.experts.up_proj, self.experts.down_proj
        if any(weight.shape[-1] * x.element_size() % GROUPED_BYTES for weight in (up, down)):
            return squared_relu_mlp(x, up[0], down[0]) * weights.sum(1, keepdim=True).to(x.dtype)
        return GroupedExperts.apply(x, up, down, expert_ids, weights)


class _EvenExchange(Exchange):
    """Each process gets as many tokens as the others: how many really, only numbers could tell."""

    def __init__(self, experts: Experts, group: Any) -> None:
        super().__init__(experts, group)
        self.compute = _Grouped(experts)

    def _splits(self, chosen: Tensor) -> tuple[list[int], list[int], Tensor]:
        each, rest = divmod(len(chosen), self.size)
        sizes = [each + rest, *[each] * (self.size - 1)]
        return sizes, sizes, torch.zeros(self.size, self.experts.up_proj.shape[0] // self.size, dtype=torch.int64)


class _OneDocument(Neighbours):
    """The same for rows of one document, whose ends nothing has to be asked for."""

    def __init__(self, shared: SharedSequences, whole_ids: Tensor) -> None:
        super().__init__(shared, whole_ids)
        self.previous_ids: Tensor | None = None

    def gather(self, block: int, own: Keys) -> Keys:
        found = super().gather(block, own)
        return Keys(found.keys, found.values, None)


@contextmanager
def _fake_world(size: int, rank: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it writes a traceback before it raises
    disabled, logger.disabled = logger.disabled, True
    # The kernels in C++ would look for the numbers.
    with mock.patch.dict(os.environ, {ENVIRONMENT: "eager"}):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        try:
            yield
        finally:
            dist.destroy_process_group()
            logger.disabled = disabled


class Received(TorchDispatchMode):
    """Counts collectives, and the bytes that they bring from other processes.

    Of n processes each gets (n - 1) / n of what it has in the end, and of a sum twice that. Shards travel as one flat
    tensor, tokens for experts as rows, parts of sequences with more dimensions, and by these they are told apart, since
    groups of the same processes may be one. Integers (loads, document ids) are few and left out.
    """

    def __init__(self, shared: Sharing | None = None) -> None:
        """`shared`: who shares out sequences."""
        super().__init__()
        self.count, self.bytes = 0, dict.fromkeys(PURPOSES, 0)
        self._heads = shared.tensor.group_name if isinstance(shared, SharedTokens) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.count += 1
            self._add(func.__name__.split(".")[0].strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, args: Any) -> None:
        if name not in ("allgather_base", "reduce_scatter_base", "allreduce", "alltoall_base"):
            return
        group = next(dist.ProcessGroup.unbox(value) for value in args if isinstance(value, torch.ScriptObject))
        output, *inputs = [value[0] if isinstance(value, list) else value for value in args[:2]]
        whole = inputs[0] if name == "reduce_scatter_base" else output
        if whole.is_floating_point():
            part = whole.nbytes * (group.size() - 1) // group.size()
            self.bytes[self._purpose(name, whole, group)] += part * (2 if name == "allreduce" else 1)

    def _purpose(self, name: str, whole: Tensor, group: Any) -> str:
        if whole.dim() == 1:
            return "weights" if name == "allgather_base" else "gradients"
        if name == "alltoall_base" and whole.dim() == 2:
            return "experts"
        return "heads" if group.group_name == self._heads else "slices"


def _reason(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
