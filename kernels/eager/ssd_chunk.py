"""One chunk of the state-space dual scan: dense products on reused buffers, forward and backward.

Letters as in ops.py; R = H / G heads share one group's B and C, L is the chunk's length. Two layouts occur: by head
(B*H, L, P) for products with a head's own decay matrix, by group (B*G, L, R*P) for products with shared B and C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_LOG_DECAY = -60.0
"""Floor under summed log decays: e^-60 changes no result, and keeps exp, products and sums free of subnormal numbers,
which cost CPUs 30 times as much."""


def multiply(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """a * b into `out`, which may be a view; the compiler cannot take torch.mul's own `out` where it is one."""
    return out.copy_(a * b) if torch.compiler.is_compiling() else torch.mul(a, b, out=out)


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan (letters above) with the type and device of its buffers."""

    B: int
    G: int
    R: int
    P: int
    N: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, *sizes: int) -> Tensor:
        """An uninitialised buffer."""
        return torch.empty(sizes, dtype=self.dtype, device=self.device)


@dataclass
class Decays:
    """Decay factors of one chunk."""

    matrix: Tensor
    """(B, H, L, L) exp of the summed log decay from token j to token i; without meaning where j > i."""
    from_start: Tensor
    """(B, H, L) decay of the chunk's start state at each token; 0 once another document has begun."""
    to_end: Tensor
    """(B, H, L) decay of each token's contribution at the chunk's end; 0 where a document starts after it."""

    @property
    def whole(self) -> Tensor:
        """(B, H) decay of the start state over the whole chunk."""
        return self.from_start[..., -1]


class Workspace:
    """Buffers for chunks of one length, reused so that no chunk touches fresh memory."""

    def __init__(self, shape: Shape, length: int, *, backward: bool = False) -> None:
        self.shape, self.length = shape, length
        self.same: Tensor | None = None
        s, L, BG, BH = shape, length, shape.B * shape.G, shape.B * shape.G * shape.R
        self.matrix = s.empty(BH, L, L)
        self.products = s.empty(BG, L, L)
        self.group_B, self.group_C = s.empty(BG, L, s.N), s.empty(BG, L, s.N)
        self.heads_x, self.heads_out = s.empty(BH, L, s.P), s.empty(BH, L, s.P)
        self.groups = s.empty(BG, L, s.R * s.P)
        if backward:
            self.matrix_grad, self.weighted = torch.empty_like(self.matrix), torch.empty_like(self.matrix)
            self.heads_grad = torch.empty_like(self.heads_x)
            self.groups_y, self.groups_x = torch.empty_like(self.groups), torch.empty_like(self.groups)
            self.products_grad = torch.empty_like(self.products)
            self.state_product = s.empty(BH, s.P * s.N)
            self.grad_B, self.grad_C = torch.empty_like(self.group_B), torch.empty_like(self.group_C)

    def heads(self, buffer: Tensor) -> Tensor:
        """A by-head buffer (B*H, L, P) seen as (B, L, H, P)."""
        s = self.shape
        return buffer.view(s.B, s.G * s.R, self.length, s.P).transpose(1, 2)

    def heads_by_group(self, buffer: Tensor) -> Tensor:
        """A by-head buffer (B*H, L, P) seen as (B, G, L, R, P)."""
        s = self.shape
        return buffer.view(s.B, s.G, s.R, self.length, s.P).transpose(2, 3)

    def by_group(self, buffer: Tensor) -> Tensor:
        """A by-group buffer (B*G, L, R*P) seen as (B, G, L, R, P)."""
        s = self.shape
        return buffer.view(s.B, s.G, self.length, s.R, s.P)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, L, H, P) seen as (B, G, L, R, P)."""
        s = self.shape
        return x.unflatten(2, (s.G, s.R)).transpose(1, 2)

    def factor(self, decay: Tensor) -> Tensor:
        """(B, H, L) seen as (B, G, L, R, 1)."""
        return decay.unflatten(1, (self.shape.G, self.shape.R)).transpose(2, 3).unsqueeze(-1)

    def load_groups(self, B: Tensor, C: Tensor, segment: Tensor | None) -> None:
        """Copy B and C (B, L, G, N) to by-group buffers, with the products C_i . B_j once a group."""
        s = self.shape
        self.group_B.view(s.B, s.G, self.length, s.N).copy_(B.transpose(1, 2))
        self.group_C.view(s.B, s.G, self.length, s.N).copy_(C.transpose(1, 2))
        torch.bmm(self.group_C, self.group_B.transpose(1, 2), out=self.products)
        self.same = None if segment is None else (segment.unsqueeze(2) == segment.unsqueeze(1)).to(s.dtype)
        self.mask(self.products)

    def mask(self, products: Tensor) -> None:
        """Zero (B*G, L, L) where token j is after token i or in another document."""
        products.tril_()
        if self.same is not None:
            products.view(self.shape.B, self.shape.G, self.length, self.length).mul_(self.same.unsqueeze(1))

    def weight_by_products(self, matrix: Tensor, out: Tensor) -> None:
        """out (B*H, L, L) = matrix * products of the head's group."""
        s, L = self.shape, self.length
        multiply(matrix.view(s.B * s.G, s.R, L, L), self.products.unsqueeze(1), out=out.view(s.B * s.G, s.R, L, L))


def decays(work: Workspace, log_decay: Tensor, segment: Tensor | None, previous: Tensor | None) -> Decays:
    """Decay factors of a chunk; the matrix lives in `work.matrix`.

    Args:
        log_decay: (B, L, H) log of each token's decay.
        segment: (B, L) document numbers, or None when the row holds one document.
        previous: (B,) document number that the start state belongs to.
    """
    s, L = work.shape, work.length
    summed = log_decay.transpose(1, 2).contiguous().cumsum(-1)  # (B, H, L)
    matrix = work.matrix.view(s.B, s.G * s.R, L, L)
    torch.sub(summed.unsqueeze(-1), summed.unsqueeze(-2), out=matrix)
    # clamped before exp: a future token's would overflow, and inf * 0 is NaN; the products carry the zeros
    matrix.clamp_(SMALLEST_LOG_DECAY, 0).exp_()
    from_start = summed.clamp_min(SMALLEST_LOG_DECAY).exp_()
    to_end = (summed[..., -1:] - summed).clamp_min_(SMALLEST_LOG_DECAY).exp_()
    if segment is not None and previous is not None:
        from_start.mul_((segment == previous.unsqueeze(1)).unsqueeze(1))
        to_end.mul_((segment == segment[:, -1:]).unsqueeze(1))
    return Decays(matrix, from_start, to_end)


def chunk_forward(
    work: Workspace, x: Tensor, step: Tensor, decay: Decays, D: Tensor, state: Tensor, out: Tensor
) -> None:
    """y of one chunk into `out`; leaves step * x decayed to the chunk's end in `work.groups` for `advance`.

    Args:
        x, out: (B, L, H, P).
        step: (B, L, H).
        state: (B*G, R*P, N) at the chunk's start.
    """
    multiply(x, step.unsqueeze(-1), out=work.heads(work.heads_x))
    work.weight_by_products(work.matrix, out=work.matrix)
    torch.bmm(work.matrix, work.heads_x, out=work.heads_out)
    torch.bmm(work.group_C, state.transpose(1, 2), out=work.groups)
    groups = work.by_group(work.groups)
    groups.mul_(work.factor(decay.from_start)).add_(work.heads_by_group(work.heads_out))
    groups.addcmul_(work.split_heads(x).to(groups.dtype), D.view(1, work.shape.G, 1, work.shape.R, 1))
    work.split_heads(out).copy_(groups)
    multiply(work.heads_by_group(work.heads_x), work.factor(decay.to_end), out=groups)


def advance(work: Workspace, decay: Decays, state: Tensor, out: Tensor) -> None:
    """State at the chunk's end into `out`, which may be `state`; both (B*G, R*P, N)."""
    s = work.shape
    heads = (s.B * s.G * s.R, s.P * s.N)
    multiply(state.view(heads), decay.whole.reshape(-1, 1), out=out.view(heads))
    out.baddbmm_(work.groups.transpose(1, 2), work.group_B)


@dataclass
class TokenGrads:
    """Gradients of a whole scan, filled chunk by chunk."""

    x: Tensor
    """(B, T, H, P)"""
    B: Tensor
    """(B, T, G, N)"""
    C: Tensor
    """(B, T, G, N)"""
    step: Tensor
    """(B, T, H) through step * x only"""
    log_decay: Tensor
    """(B, T, H)"""
    D: Tensor
    """(H,)"""


def chunk_backward(
    work: Workspace, x: Tensor, step: Tensor, decay: Decays, state: Tensor, dy: Tensor, dstate: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of one chunk, left in the buffers; `dstate` goes from the chunk's end to its start in place.

    Returns:
        grad of step * x as (B, G, L, R, P) in `work.groups`, and of the tokens' log decays (B, H, L).
        Gradients of B and C lie in `work.grad_B`, `work.grad_C`, dy in `work.heads_grad`.
    """
    s = work.shape
    multiply(x, step.unsqueeze(-1), out=work.heads(work.heads_x))
    work.heads(work.heads_grad).copy_(dy)
    within = _backward_within(work)
    by_start = _backward_from_state(work, decay, state)
    to_end = _backward_to_state(work, decay, dstate)
    heads = dstate.view(-1, s.P * s.N)
    heads.mul_(decay.whole.reshape(-1, 1))
    total = multiply(heads, state.view_as(heads), out=work.state_product).sum(-1).view_as(decay.whole)
    dstate.baddbmm_(work.groups_y.transpose(1, 2), work.group_C)
    return work.by_group(work.groups), _log_decay_grad(within + by_start, to_end, total)


def store(work: Workspace, grads: TokenGrads, part: slice, x: Tensor, step: Tensor, D: Tensor, dx: Tensor) -> None:
    """Write one chunk's gradients, as `chunk_backward` left them, to those of the whole scan."""
    s = work.shape
    x, dy, product = work.split_heads(x).to(s.dtype), work.heads_by_group(work.heads_grad), work.by_group(work.groups_x)
    grads.step[:, part] = multiply(dx, x, out=product).sum(-1).transpose(1, 2).flatten(2)
    grads.D += multiply(dy, x, out=product).sum((0, 2, 4)).flatten()
    dx.mul_(step.unflatten(2, (s.G, s.R)).transpose(1, 2).unsqueeze(-1))
    dx.addcmul_(dy, D.view(1, s.G, 1, s.R, 1))
    work.split_heads(grads.x[:, part]).copy_(dx)
    for grad, whole in ((work.grad_B, grads.B), (work.grad_C, grads.C)):
        whole[:, part].copy_(grad.view(s.B, s.G, work.length, s.N).transpose(1, 2))


def _backward_within(work: Workspace) -> Tensor:
    """Gradients through the (L, L) matrices; returns the one of the summed log decays (B, H, L)."""
    s, L = work.shape, work.length
    grouped = (s.B * s.G, s.R, L, L)
    torch.bmm(work.heads_grad, work.heads_x.transpose(1, 2), out=work.matrix_grad)
    work.matrix_grad.mul_(work.matrix)
    torch.sum(work.matrix_grad.view(grouped), dim=1, out=work.products_grad)
    work.mask(work.products_grad)
    work.weight_by_products(work.matrix, out=work.weighted)
    torch.bmm(work.weighted.transpose(1, 2), work.heads_grad, out=work.heads_out)
    torch.bmm(work.products_grad, work.group_B, out=work.grad_C)
    torch.bmm(work.products_grad.transpose(1, 2), work.group_C, out=work.grad_B)
    # a token's own term does not decay: left in, it would cancel only up to rounding
    work.products.diagonal(dim1=1, dim2=2).zero_()
    work.weight_by_products(work.matrix_grad, out=work.weighted)
    return (work.weighted.sum(2) - work.weighted.sum(1)).view(s.B, s.G * s.R, L)


def _backward_from_state(work: Workspace, decay: Decays, state: Tensor) -> Tensor:
    """Gradients through the start state's part of y; leaves the decayed dy in `work.groups_y`."""
    dy, read = work.by_group(work.groups_y), work.by_group(work.groups)
    multiply(work.heads_by_group(work.heads_grad), work.factor(decay.from_start), out=dy)
    work.grad_C.baddbmm_(work.groups_y, state)
    torch.bmm(work.group_C, state.transpose(1, 2), out=work.groups)
    return _per_head(read.mul_(dy).sum(-1))


def _backward_to_state(work: Workspace, decay: Decays, dstate: Tensor) -> Tensor:
    """Gradients through the end state; leaves the whole gradient of step * x in `work.groups`."""
    dx, x = work.by_group(work.groups), work.by_group(work.groups_x)
    multiply(work.heads_by_group(work.heads_x), work.factor(decay.to_end), out=x)
    work.grad_B.baddbmm_(work.groups_x, dstate)
    torch.bmm(work.group_B, dstate.transpose(1, 2), out=work.groups)
    through_end = _per_head(x.mul_(dx).sum(-1))
    dx.mul_(work.factor(decay.to_end)).add_(work.heads_by_group(work.heads_out))
    return through_end


def _per_head(values: Tensor) -> Tensor:
    """(B, G, L, R) -> (B, H, L)"""
    return values.transpose(2, 3).flatten(1, 2)


def _log_decay_grad(up_to: Tensor, from_token: Tensor, whole: Tensor) -> Tensor:
    """Gradients of summed decays -> of each token's log decay.

    Args:
        up_to: (B, H, L) terms decayed by all tokens up to and with i.
        from_token: (B, H, L) terms decayed by all tokens after j.
        whole: (B, H) terms decayed by the whole chunk.
    """
    after = from_token.cumsum(-1).sub_(from_token)
    return up_to.flip(-1).cumsum(-1).flip(-1).add_(after).add_(whole.unsqueeze(-1))
