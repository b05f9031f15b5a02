"""State-space dual scan as its recurrence, token by token (Mamba-2, arXiv 2405.21060; report section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import accumulator, segments


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
    chunk_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.ssd_scan; `chunk_size` has no effect here."""
    batch, T, H, P = x.shape
    wide = accumulator(x.dtype)
    state = torch.zeros(batch, H, P, B.shape[-1], dtype=wide, device=x.device)
    if initial_state is not None:
        state = initial_state.to(wide)
    segment = None if document_ids is None else segments(document_ids)
    outputs = []
    for t in range(T):
        if segment is not None and t > 0:
            state = state * (segment[:, t] == segment[:, t - 1]).view(-1, 1, 1, 1)
        state, y = _advance(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D, dt_bias)
        outputs.append(y)
    return torch.stack(outputs, dim=1).to(x.dtype), state


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """See nano3.kernels.ssd_step."""
    new_state, y = _advance(state, x, dt, A, B, C, D, dt_bias)
    state.copy_(new_state)
    return y.to(x.dtype)


def _advance(state, x, dt, A, B, C, D, dt_bias) -> tuple[Tensor, Tensor]:
    wide = state.dtype
    heads_per_group = x.shape[-2] // B.shape[-2]
    x = x.to(wide)
    B, C = (m.to(wide).repeat_interleave(heads_per_group, dim=1) for m in (B, C))  # (B, H, N)
    dt = F.softplus(dt.to(wide) + dt_bias.to(wide))  # (B, H)
    decay = torch.exp(dt * A.to(wide))
    state = decay[..., None, None] * state + (dt[..., None] * x)[..., None] * B[:, :, None, :]
    y = torch.einsum("bhpn,bhn->bhp", state, C) + D.to(wide)[:, None] * x
    return state, y
