"""What goes into each projection of a block while tokens run: the largest magnitudes, or second moments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from nano3.kernels import linear
from nano3.model.block import Block
from nano3.model.layers import Linear
from nano3.model.moe import Experts

KEYS_VALUES = {"k_proj": "k_scale", "v_proj": "v_scale"}
"""Projection whose outputs are cached -> name of their scale."""


class Watcher(Protocol):
    """What is given the activations of one block."""

    tokens: list[int]
    """Tokens that each expert was given; empty for a block without experts."""

    def see(self, name: str, x: Tensor, expert: int | None = None) -> None:
        """Count in activations (..., I): `name` is that of the module within the mixer whose inputs they are, with
        `.k_scale` or `.v_scale` behind it whose outputs; `expert` the one that computes with them."""
        ...


Found = TypeVar("Found", bound=Watcher)


@dataclass
class Observed:
    """The largest magnitudes of one block."""

    largest: dict[str, float] = field(default_factory=dict)
    """Module's name within the mixer, of all experts `experts.up_proj` -> largest magnitude of its inputs; with
    `.k_scale` or `.v_scale` behind it of its outputs."""
    tokens: list[int] = field(default_factory=list)
    """Tokens that each expert was given; empty for a block without experts."""

    def see(self, name: str, x: Tensor, expert: int | None = None) -> None:
        """Count some activations in, those of all experts together.

        Raises:
            FloatingPointError: one is no finite number, which no scale holds.
        """
        if not x.numel():
            return
        largest = float(x.abs().amax())
        if not math.isfinite(largest):
            raise FloatingPointError(f"{name} has {largest}")
        self.largest[name] = max(self.largest.get(name, 0.0), largest)

    def silent(self) -> list[int]:
        """Experts that no token was given to."""
        return [expert for expert, count in enumerate(self.tokens) if not count]


@dataclass
class Moments:
    """Sums of x x^T over the inputs x of each projection of one block (or of the output projection)."""

    sums: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    """Module's name within the mixer, and expert where it is one's -> (I, I) float32."""
    tokens: list[int] = field(default_factory=list)

    def see(self, name: str, x: Tensor, expert: int | None = None) -> None:
        """Count some activations in; keys and values are not kept.

        Raises:
            FloatingPointError: one is no finite number.
        """
        if name.endswith(tuple(KEYS_VALUES.values())) or not x.numel():
            return
        if not bool(x.isfinite().all()):
            raise FloatingPointError(f"{name} has a number that is not finite")
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        total = self.sums.setdefault((name, expert), rows.new_zeros(rows.shape[1], rows.shape[1]))
        total.addmm_(rows.T, rows)


@contextmanager
def observed(block: Block, found: Found) -> Iterator[Found]:
    """Show `found` every pass through `block` until the end of this context."""
    with ExitStack() as stack:
        for name, module in block.mixer.named_modules():
            if isinstance(module, Linear):
                stack.callback(module.register_forward_pre_hook(_before(found, name)).remove)
                if (leaf := name.rpartition(".")[2]) in KEYS_VALUES:
                    stack.callback(module.register_forward_hook(_behind(found, f"{name}.{KEYS_VALUES[leaf]}")).remove)
            elif isinstance(module, Experts):
                found.tokens = [0] * module.up_proj.shape[0]
                module.forward = _routed(found, name, module)
                stack.callback(module.__dict__.pop, "forward")
        yield found


def _before(found: Watcher, name: str):
    def see(module: nn.Module, inputs: Sequence[Tensor]) -> None:
        found.see(name, inputs[0])

    return see


def _behind(found: Watcher, name: str):
    def see(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        found.see(name, output)

    return see


def _routed(found: Watcher, name: str, experts: Experts):
    """As `Experts.forward`, one expert after the other, so that what lies between its two matrices is seen."""

    def forward(x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(len(found.tokens)):
            rows, place = (expert_ids == expert).nonzero(as_tuple=True)
            found.tokens[expert] += len(rows)
            if not len(rows):
                continue
            found.see(f"{name}.up_proj", x[rows], expert)
            hidden = torch.relu(linear(x[rows], experts.up_proj[expert])).square()
            found.see(f"{name}.down_proj", hidden, expert)
            y = linear(hidden, experts.down_proj[expert]).float()
            total.index_add_(0, rows, y * weights[rows, place].float().unsqueeze(1))
        return total.to(x.dtype)

    return forward
