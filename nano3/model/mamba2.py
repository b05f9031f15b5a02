"""Mamba-2 mixer (report section 2.1; Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nano3.config.model import ModelConfig
from nano3.kernels import causal_conv1d, causal_conv1d_step, gated_rms_norm, mamba_step, ssd_scan, ssd_step
from nano3.model.forward_pass import WHOLE, Edge, Pass, where_rows
from nano3.model.layers import Linear
from nano3.model.state.block import BlockState, MambaSlots, MambaState
from nano3.model.state.plan import Padded
from nano3.model.state.step_plan import StepPlan


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
        self.group_width, self.eps = width // n_groups, eps

    @property
    def n_groups(self) -> int:
        """Groups that there are weights for."""
        return self.weight.shape[0] // self.group_width

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., width) -> (..., width)."""
        return gated_rms_norm(y, z, self.weight, self.eps, self.n_groups)


class Mamba2(nn.Module):
    """in-projection -> causal conv + SiLU over x, B, C -> selective scan -> gated norm -> out-projection.

    It has as many heads and groups as there are weights for, which may be a part of the model's.
    """

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
        around.check_whole()
        z, xBC, dt = self._project(u)
        if isinstance(state, MambaSlots):
            return self.out_proj(self._advance(z[0], xBC[0], dt[0], state).unsqueeze(0)), None
        assert state is None or isinstance(state, MambaState)
        if state is not None and u.shape[1] == 1:
            y = self._step(xBC[:, 0], dt[:, 0], state).unsqueeze(1)
        else:
            y = self._scan(xBC, dt, around, state)
        return self.out_proj(self.norm(y, z)), None

    def advance(
        self, u: Tensor, document_ids: Tensor | None, conv: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, T, D) after a state (conv, ssm; see MambaState; None: the start) -> (B, T, D) and the next state.

        The first document of a row continues the state. Differentiable in the state too.
        """
        z, xBC, dt = self._project(u)
        y, conv, ssm = self.mix(xBC, dt, document_ids, conv, ssm)
        return self.out_proj(self.norm(y, z)), conv, ssm

    def scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, T, D) -> inputs of the convolution (B, T, conv_dim) and raw steps (B, T, H)."""
        _, xBC, dt = self._project(u)
        return xBC, dt

    def _project(self, u: Tensor) -> tuple[Tensor, ...]:
        """u (..., D) -> z (..., d_inner), xBC (..., conv_dim), dt (..., H)."""
        return self.in_proj(u).split([self.norm.weight.shape[0], self.conv1d.weight.shape[0], len(self.A_log)], dim=-1)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., conv_dim) -> x (..., H, P), B and C (..., G, N)."""
        d_inner = self.norm.weight.shape[0]
        groups = (xBC.shape[-1] - d_inner) // 2
        x, B, C = xBC.split([d_inner, groups, groups], dim=-1)
        heads, states = (-1, self.cfg.mamba_head_dim), (-1, self.cfg.d_state)
        return x.unflatten(-1, heads), B.unflatten(-1, states), C.unflatten(-1, states)

    def A(self) -> Tensor:
        """(H,) negative, float32: how fast each head's state decays."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _scan(self, xBC: Tensor, dt: Tensor, around: Pass, state: MambaState | None) -> Tensor:
        conv, ssm = (state.conv, state.ssm) if state is not None else around.enter(_WholeSlice(self, xBC, dt, around))
        y, conv, ssm = self.mix(xBC, dt, around.document_ids, conv, ssm)
        if state is not None:
            state.conv.copy_(conv)
            state.ssm.copy_(ssm)
        elif around.boundary is not None:
            around.boundary.leave(around.block, Edge(conv, ssm))
        return y

    def mix(
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
            self.A(),
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
        return ssd_step(state.ssm, x, dt, self.A(), B, C, self.D, self.dt_bias).flatten(-2)

    def _advance(self, z: Tensor, xBC: Tensor, dt: Tensor, slots: MambaSlots) -> Tensor:
        """Tokens of many sequences in one row: z (S, d_inner), xBC (S, conv_dim), dt (S, H) -> (S, d_inner)."""
        assert slots.plan is not None
        if isinstance(slots.plan, StepPlan):
            return self._step_slots(z, xBC, dt, slots, slots.plan.slots)
        y = z.new_empty(z.shape)
        for part in slots.plan.rounds:
            if part.single is not None:
                at = part.single.positions
                y[at] = self._step_slots(z[at], xBC[at], dt[at], slots, part.single.slots)
            for piece in part.long:
                at, state = piece.positions, slots.view(slice(piece.slot, piece.slot + 1))
                y[at] = self.norm(self._scan(xBC[at].unsqueeze(0), dt[at].unsqueeze(0), WHOLE, state)[0], z[at])
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
        values = self._scan(rows, steps, WHOLE, state)
        last = part.lengths.unsqueeze(1) + torch.arange(state.conv.shape[2], device=rows.device)
        state.conv = inputs.gather(1, last.unsqueeze(-1).expand(-1, -1, rows.shape[2])).transpose(1, 2)
        slots.put(part.slots, state)
        y[part.tokens] = self.norm(values.flatten(0, 1)[part.cells], z[part.tokens])


class MambaSlice:
    """See nano3.model.forward_pass.OwnSlice; of T tokens that are projected piece by piece."""

    def __init__(self, mixer: Mamba2, around: Pass, pieces: list[slice]) -> None:
        self.mixer, self.around, self.pieces = mixer, around, pieces

    def inputs(self, piece: slice) -> tuple[Tensor, Tensor]:
        """Inputs of the convolution (B, piece, conv_dim) and raw steps (B, piece, H)."""
        raise NotImplementedError

    def advance(self, piece: slice, conv: Tensor | None, ssm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Conv and scan state after a piece, and the sum of its steps (B, H)."""
        xBC, dt = self.inputs(piece)
        steps = softplus(dt.to(self.mixer.A().dtype) + self.mixer.dt_bias).sum(1)
        return *self.mixer.mix(xBC, dt, self._ids(piece), conv, ssm)[1:], steps

    def tail(self) -> Tensor:
        """(B, C, W-1)."""
        end, n_past = self.pieces[-1].stop, self.mixer.conv1d.weight.shape[-1] - 1
        if end < n_past:
            raise ValueError(
                f"a slice of {end} tokens is shorter than the {n_past} that the next one's convolution sees"
            )
        last = slice(end - n_past, end)
        xBC, _ = self.inputs(last)
        return causal_conv1d(
            xBC, self.mixer.conv1d.weight.squeeze(1), self.mixer.conv1d.bias, document_ids=self._ids(last)
        )[1]

    def summary(self, conv: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, P, N) and (B, H)."""
        ids, unbroken, ssm = self.around.document_ids, self.around.continues, None
        total = torch.zeros((), device=self.mixer.A_log.device)
        for piece in self.pieces:
            continues = self.around.continues
            if piece.start:
                continues = None if ids is None else ids[:, piece.start] == ids[:, piece.start - 1]
            conv, ssm = (None if m is None else where_rows(continues, m) for m in (conv, ssm))
            conv, ssm, steps = self.advance(piece, conv, ssm)
            total = total + steps
        assert ssm is not None, "a slice has tokens"
        if ids is not None:
            whole = (ids[:, 1:] == ids[:, :-1]).all(1)
            unbroken = whole if unbroken is None else whole & unbroken
        return ssm, where_rows(unbroken, torch.exp(self.mixer.A() * total))

    def _ids(self, piece: slice) -> Tensor | None:
        ids = self.around.document_ids
        return None if ids is None else ids[:, piece]


class _WholeSlice(MambaSlice):
    def __init__(self, mixer: Mamba2, xBC: Tensor, dt: Tensor, around: Pass) -> None:
        super().__init__(mixer, around, [slice(0, xBC.shape[1])])
        self._xBC, self._dt = xBC, dt

    def inputs(self, piece: slice) -> tuple[Tensor, Tensor]:
        return self._xBC[:, piece], self._dt[:, piece]
