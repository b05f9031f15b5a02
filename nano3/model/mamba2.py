"""Mamba-2 mixer (report section 2.1; Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import causal_conv1d, causal_conv1d_step, gated_rms_norm, mamba_step, ssd_scan, ssd_step
from nano3.model.forward_pass import WHOLE, Pass
from nano3.model.layers import Linear
from nano3.model.plan import Padded
from nano3.model.pool import MambaSlots
from nano3.model.state import BlockState, MambaState


class CausalConv1d(nn.Module):
    """Weights of the depthwise causal convolution: weight (C, 1, W) and bias (C,), as checkpoints hold them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels))


class GatedRMSNorm(nn.Module):
    """Grouped RMSNorm of `y * silu(z)`: the gate comes before the norm."""

    def __init__(self, width: int, n_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.n_groups, self.eps = n_groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., width) -> (..., width)."""
        return gated_rms_norm(y, z, self.weight, self.eps, self.n_groups)


class Mamba2(nn.Module):
    """in-projection -> causal conv + SiLU over x, B, C -> selective scan -> gated norm -> out-projection."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_proj = Linear(cfg.d_model, cfg.d_in_proj)
        self.conv1d = CausalConv1d(cfg.conv_dim, cfg.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(cfg.mamba_n_heads))
        self.A_log = nn.Parameter(torch.empty(cfg.mamba_n_heads))
        self.D = nn.Parameter(torch.empty(cfg.mamba_n_heads))
        self.norm = GatedRMSNorm(cfg.d_inner, cfg.n_groups, cfg.norm_eps)
        self.out_proj = Linear(cfg.d_inner, cfg.d_model)

    def forward(self, u: Tensor, around: Pass = WHOLE, state: BlockState = None) -> tuple[Tensor, None]:
        """u (B, T, D) -> (B, T, D); `state` is advanced in place."""
        z, xBC, dt = self._project(u)
        if isinstance(state, MambaSlots):
            return self.out_proj(self._advance(z[0], xBC[0], dt[0], state).unsqueeze(0)), None
        assert state is None or isinstance(state, MambaState)
        if state is not None and u.shape[1] == 1:
            y = self._step(xBC[:, 0], dt[:, 0], state).unsqueeze(1)
        else:
            y = self._scan(xBC, dt, around.document_ids, state)
        return self.out_proj(self.norm(y, z)), None

    def advance(
        self, u: Tensor, document_ids: Tensor | None, conv: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, T, D) after a state (conv, ssm; see MambaState; None: the start) -> (B, T, D) and the next state.

        The first document of a row continues the state. Differentiable in the state too.
        """
        z, xBC, dt = self._project(u)
        y, conv, ssm = self._mix(xBC, dt, document_ids, conv, ssm)
        return self.out_proj(self.norm(y, z)), conv, ssm

    def _project(self, u: Tensor) -> tuple[Tensor, ...]:
        """u (..., D) -> z (..., d_inner), xBC (..., conv_dim), dt (..., H)."""
        cfg = self.cfg
        return self.in_proj(u).split([cfg.d_inner, cfg.conv_dim, cfg.mamba_n_heads], dim=-1)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., conv_dim) -> x (..., H, P), B and C (..., G, N)."""
        cfg = self.cfg
        groups = cfg.n_groups * cfg.d_state
        x, B, C = xBC.split([cfg.d_inner, groups, groups], dim=-1)
        return (
            x.unflatten(-1, (cfg.mamba_n_heads, cfg.mamba_head_dim)),
            B.unflatten(-1, (cfg.n_groups, cfg.d_state)),
            C.unflatten(-1, (cfg.n_groups, cfg.d_state)),
        )

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _scan(self, xBC: Tensor, dt: Tensor, document_ids: Tensor | None, state: MambaState | None) -> Tensor:
        conv, ssm = (state.conv, state.ssm) if state is not None else (None, None)
        y, conv, ssm = self._mix(xBC, dt, document_ids, conv, ssm)
        if state is not None:
            state.conv.copy_(conv)
            state.ssm.copy_(ssm)
        return y

    def _mix(
        self, xBC: Tensor, dt: Tensor, document_ids: Tensor | None, conv: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Convolution and scan: y (B, T, d_inner) and the state after them."""
        xBC, last_inputs = causal_conv1d(
            xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, initial_state=conv, document_ids=document_ids
        )
        x, B, C = self._split(xBC)
        y, last_state = ssd_scan(
            x,
            dt,
            self._A(),
            B,
            C,
            self.D,
            self.dt_bias,
            initial_state=ssm,
            document_ids=document_ids,
            chunk_size=self.cfg.chunk_size,
        )
        return y.flatten(-2), last_inputs, last_state

    def _step(self, xBC: Tensor, dt: Tensor, state: MambaState) -> Tensor:
        xBC = causal_conv1d_step(xBC, state.conv, self.conv1d.weight.squeeze(1), self.conv1d.bias)
        x, B, C = self._split(xBC)
        return ssd_step(state.ssm, x, dt, self._A(), B, C, self.D, self.dt_bias).flatten(-2)

    def _advance(self, z: Tensor, xBC: Tensor, dt: Tensor, slots: MambaSlots) -> Tensor:
        """Tokens of many sequences in one row: z (S, d_inner), xBC (S, conv_dim), dt (S, H) -> (S, d_inner)."""
        assert slots.plan is not None
        y = z.new_empty(z.shape)
        for part in slots.plan.rounds:
            if part.single is not None:
                at = part.single.positions
                y[at] = self._step_slots(z[at], xBC[at], dt[at], slots, part.single.slots)
            for piece in part.long:
                at, state = piece.positions, slots.view(slice(piece.slot, piece.slot + 1))
                y[at] = self.norm(self._scan(xBC[at].unsqueeze(0), dt[at].unsqueeze(0), None, state)[0], z[at])
            if part.padded is not None:
                self._advance_padded(y, z, xBC, dt, slots, part.padded)
            slots.save(part)
        return y

    def _step_slots(self, z: Tensor, xBC: Tensor, dt: Tensor, slots: MambaSlots, indices: Tensor) -> Tensor:
        conv, norm = self.conv1d, self.norm
        return mamba_step(
            xBC,
            dt,
            z,
            slots.conv,
            slots.ssm,
            indices,
            conv.weight.squeeze(1),
            conv.bias,
            self.A_log,
            self.D,
            self.dt_bias,
            norm.weight,
            norm.eps,
            norm.n_groups,
        )

    def _advance_padded(self, y: Tensor, z: Tensor, xBC: Tensor, dt: Tensor, slots: MambaSlots, part: Padded) -> None:
        """Pieces of different lengths side by side. A raw step of -inf is a step of zero: padding leaves the scan's
        state alone; the conv state is taken from where each piece ends."""
        state = slots.take(part.slots)
        # Padding must not bring another sequence's numbers in: 0 times a nan would be nan.
        rows = xBC[part.positions].masked_fill_(~part.valid.unsqueeze(-1), 0)  # (g, L, conv_dim)
        inputs = torch.cat([state.conv.transpose(1, 2).to(rows.dtype), rows], dim=1)
        steps = dt[part.positions].masked_fill(~part.valid.unsqueeze(-1), -torch.inf)
        values = self._scan(rows, steps, None, state)
        last = part.lengths.unsqueeze(1) + torch.arange(self.cfg.d_conv - 1, device=rows.device)
        state.conv = inputs.gather(1, last.unsqueeze(-1).expand(-1, -1, rows.shape[2])).transpose(1, 2)
        slots.put(part.slots, state)
        valid = part.positions[part.valid]
        y[valid] = self.norm(values[part.valid], z[valid])
