"""State-space dual scan by chunks: dense products inside a chunk, the state carried between chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..common import accumulator, segments


def ssd_scan(x, dt, A, B, C, D, dt_bias, *, initial_state=None, document_ids=None, chunk_size=128):
    """See nano3.kernels.ssd_scan."""
    batch, T, H, P = x.shape
    wide = accumulator(x.dtype)
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    state = x.new_zeros(batch, H, P, B.shape[-1], dtype=wide) if initial_state is None else initial_state.to(wide)
    segment = segments(torch.zeros_like(dt[..., 0]) if document_ids is None else document_ids)
    last = segment[:, 0]
    outputs = []
    for t in range(0, T, chunk_size):
        part = slice(t, t + chunk_size)
        y, state = _chunk(
            x[:, part].to(wide),
            step[:, part],
            A,
            B[:, part].to(wide),
            C[:, part].to(wide),
            D,
            state,
            segment[:, part],
            last,
        )
        last = segment[:, part][:, -1]
        outputs.append(y)
    return torch.cat(outputs, 1).to(x.dtype), state


def _chunk(x, step, A, B, C, D, state, segment, last):
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = (m.repeat_interleave(heads_per_group, 2).transpose(1, 2) for m in (B, C))
    cum = (step * A).cumsum(1).transpose(1, 2)
    L = x.shape[1]
    allowed = (segment[:, :, None] == segment[:, None, :]) & torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
    decay = (cum[..., :, None] - cum[..., None, :]).masked_fill(~allowed[:, None], float("-inf")).exp()
    scaled = (x * step[..., None]).transpose(1, 2)
    y = (C @ B.transpose(-1, -2) * decay) @ scaled
    y = y + C @ state.transpose(-1, -2) * (cum.exp() * (segment == last[:, None])[:, None])[..., None]
    to_end = (cum[..., -1:] - cum).exp() * (segment == segment[:, -1:])[:, None]
    carried = state * (cum[..., -1].exp() * (segment[:, -1] == last)[:, None])[..., None, None]
    return y.transpose(1, 2) + x * D[:, None], carried + (scaled * to_end[..., None]).transpose(-1, -2) @ B
