"""Tensor parallelism inside mixers: each process of a group has some heads of every Mamba-2 and attention block.

Between mixers each process has a part of the tokens (Megatron's sequence parallelism, arXiv 2205.05198 section 4.2.2):
embeddings, norms, experts and the loss know nothing of it. A mixer gathers the group's tokens, computes its own heads
of all of them, and gets its own tokens' part of the sum of all heads' outputs.

Weights stay whole in the model, in its shards and in checkpoints. What a process computes with are the rows and columns
of its heads, cut out as a block's weights are gathered; gradients of all others are 0 there, so that sums over all
processes, as sharding makes them, are the gradients. Where there are fewer heads of keys, or groups of B and C, than
processes, several take the same rows, whose gradients add up in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.model.attention import Attention
from nano3.model.forward_pass import WHOLE, Pass
from nano3.model.lm import PassOptions
from nano3.model.mamba2 import GatedRMSNorm, Mamba2
from nano3.model.state.block import BlockState
from nano3.parallel.collectives import gather, sum_parts
from nano3.parallel.context import Neighbours, SharedSequences
from nano3.parallel.sharing import Sharing, SlicedBatch


class SharedTokens(Sharing):
    """Processes that each hold a run of tokens of every sequence, or of every slice of those that share out sequences
    too, and divide the heads of mixers."""

    def __init__(self, group: Any, tensor: Any, slices: SharedSequences | None = None) -> None:
        """Of all processes that share out a sequence, `group`, those that divide heads are `tensor`; the others hold
        other `slices`, None: there are none."""
        super().__init__(group)
        self.slices, self.each = slices, 1 if slices is None else slices.each
        self.tensor, self.rank, self.size = tensor, dist.get_rank(tensor), dist.get_world_size(tensor)

    def take(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> the own run of each slice (each * B, L, ...)."""
        x = self._slices(x)
        if x.shape[1] % self.size:
            raise ValueError(f"a slice of {x.shape[1]} tokens does not divide into {self.size} equal parts")
        return x.chunk(self.size, dim=1)[self.rank].contiguous()

    def join(self, x: Tensor) -> Tensor:
        whole = gather(x, self.tensor).transpose(0, 1).flatten(1, 2)
        return whole if self.slices is None else self.slices.join(whole)

    def around(self, batch: SlicedBatch) -> PassOptions:
        neighbours = None if self.slices is None else Neighbours(self.slices, batch.whole_ids)
        return {"joint": Pass(self._slices(batch.whole_ids), boundary=neighbours, context=neighbours)}

    def _slices(self, x: Tensor) -> Tensor:
        return x if self.slices is None else self.slices.take(x)


def sharing(group: Any = None, context: Any = None, tensor: Any = None) -> Sharing | None:
    """The processes `group` that share out each sequence, made of those along the axes `context` and `tensor`; None
    stands for a group of one."""
    slices = None if context is None else SharedSequences(context)
    return slices if tensor is None else SharedTokens(group, tensor, slices)


def divide_heads(model: Any, group: Any) -> None:
    """Divide the heads of the mixers of `model` over the processes of `group`, in place.

    Raises:
        UserError: mixers that have adapters.
    """
    for block in model.blocks:
        if isinstance(block.mixer, Mamba2 | Attention):
            vars(block.mixer)["forward"] = DividedHeads(block.mixer, group)


class HeadRows(NamedTuple):
    """Of a parameter what one process computes with."""

    module: str
    """Name inside the mixer of the module that has it; empty: the mixer."""
    name: str
    dim: int
    """The dimension along which it is cut."""
    spans: tuple[tuple[int, int], ...]
    """First and one past the last place of each stretch."""


class DividedHeads:
    """Stands in for the `forward` of a mixer: every process of the group gives its tokens, computes its heads, and gets
    its tokens back. All of them must call it equally often."""

    def __init__(self, mixer: Mamba2 | Attention, group: Any) -> None:
        self.mixer, self.group, self.size = mixer, group, dist.get_world_size(group)
        self.compute: Callable[..., tuple[Tensor, None]] = mixer.forward
        rank = dist.get_rank(group)
        cut = attention_parts if isinstance(mixer, Attention) else mamba_parts
        self.parts = cut(mixer.cfg, rank, self.size)
        _check_whole(mixer, self.parts)
        if isinstance(mixer, Mamba2) and self.size > mixer.cfg.n_groups:
            mixer.norm.forward = NormOfSharedGroups(mixer.norm, group, mixer.cfg.n_groups)

    def __call__(self, x: Tensor, around: Pass = WHOLE, state: BlockState = None) -> tuple[Tensor, None]:
        """x (B, T, D) of the own tokens -> (B, T, D). A pass that is not shared goes through all heads here."""
        if around.joint is None:
            return self.compute(x, around, state)
        tokens = gather(x, self.group).transpose(0, 1).flatten(1, 2)  # (B, processes * T, D)
        with self._own_heads():
            y, _ = self.compute(tokens, around.joint)
        return sum_parts(y.unflatten(1, (self.size, -1)).transpose(0, 1), self.group), None

    @contextmanager
    def _own_heads(self) -> Iterator[None]:
        """Inside, the mixer's parameters are the parts of them that belong to the own heads."""
        held = []
        for part in self.parts:
            parameters = self.mixer.get_submodule(part.module)._parameters
            held.append((parameters, part.name, parameters[part.name]))
            parameters[part.name] = _Cut.apply(parameters[part.name], part.dim, part.spans)  # pyright: ignore
        try:
            yield
        finally:
            for parameters, name, whole in held:
                parameters[name] = whole


class NormOfSharedGroups:
    """Stands in for `GatedRMSNorm.forward` where each group of the norm is spread over several processes: the mean
    square is that of the whole group."""

    def __init__(self, norm: GatedRMSNorm, group: Any, n_groups: int) -> None:
        self.norm, self.group, self.compute = norm, group, norm.forward
        each = dist.get_world_size(group) // n_groups
        first = dist.get_rank(group) // each * each
        self.members = slice(first, first + each)

    def __call__(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., width): all of the norm's width, or this process's part of one group."""
        weight, full = self.norm.weight, self.norm.group_width
        if weight.shape[0] >= full:
            return self.compute(y, z)
        wide = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(wide) * silu(z.to(wide))
        squares = gather(gated.square().sum(-1, keepdim=True), self.group)[self.members].sum(0)
        return (gated * torch.rsqrt(squares / full + self.norm.eps) * weight.to(wide)).to(y.dtype)


def attention_parts(cfg: ModelConfig, rank: int, size: int) -> list[HeadRows]:
    """What process `rank` of `size` computes with of an attention block."""
    queries, keys = (_scaled(_own(n, rank, size), cfg.head_dim) for n in (cfg.n_heads, cfg.n_kv_heads))
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    return [
        *(HeadRows(name, "weight", 0, (span,)) for name, span in rows.items()),
        HeadRows("o_proj", "weight", 1, (queries,)),
    ]


def mamba_parts(cfg: ModelConfig, rank: int, size: int) -> list[HeadRows]:
    """What process `rank` of `size` computes with of a Mamba-2 block; the input projection is one weight for z, x, B, C
    and the steps, the convolution one for x, B and C."""
    heads, states = _own(cfg.mamba_n_heads, rank, size), cfg.n_groups * cfg.d_state
    inner = _scaled(heads, cfg.mamba_head_dim)
    groups = _scaled(_own(cfg.n_groups, rank, size), cfg.d_state)
    channels = (inner, _behind(cfg.d_inner, groups), _behind(cfg.d_inner + states, groups))
    steps = _behind(cfg.d_inner + cfg.conv_dim, heads)
    projected = (inner, *(_behind(cfg.d_inner, span) for span in channels), steps)
    return [
        HeadRows("in_proj", "weight", 0, projected),
        HeadRows("conv1d", "weight", 0, channels),
        HeadRows("conv1d", "bias", 0, channels),
        *(HeadRows("", name, 0, (heads,)) for name in ("dt_bias", "A_log", "D")),
        HeadRows("norm", "weight", 0, (inner,)),
        HeadRows("out_proj", "weight", 1, (inner,)),
    ]


def _own(n: int, rank: int, size: int) -> tuple[int, int]:
    """Which of n things process `rank` of `size` has; where they are fewer, one that others have too."""
    if n < size:
        place = rank // (size // n)
        return place, place + 1
    return rank * n // size, (rank + 1) * n // size


def _scaled(span: tuple[int, int], width: int) -> tuple[int, int]:
    return span[0] * width, span[1] * width


def _behind(before: int, span: tuple[int, int]) -> tuple[int, int]:
    return before + span[0], before + span[1]


def _check_whole(mixer: nn.Module, parts: list[HeadRows]) -> None:
    known = {f"{part.module}.{part.name}".removeprefix(".") for part in parts}
    if other := [name for name, _ in mixer.named_parameters() if name not in known]:
        raise UserError(
            f"parallel.tensor divides heads, not adapters such as {other[0]} of theirs: choose lora.targets without "
            "attention and Mamba-2 blocks, or --set parallel.tensor=1"
        )


class _Cut(torch.autograd.Function):
    """Stretches of a parameter along one dimension, side by side; its gradient is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, dim: int, spans: tuple[tuple[int, int], ...]) -> Tensor:
        ctx.shape, ctx.dim, ctx.spans = whole.shape, dim, spans
        return torch.cat([whole.narrow(dim, start, stop - start) for start, stop in spans], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        whole, place = gradient.new_zeros(ctx.shape), 0
        for start, stop in ctx.spans:
            whole.narrow(ctx.dim, start, stop - start).copy_(gradient.narrow(ctx.dim, place, stop - start))
            place += stop - start
        return whole, None, None
