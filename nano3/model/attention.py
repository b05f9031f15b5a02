"""Grouped-query attention without any positional embedding (report section 2.1)."""

from __future__ import annotations

from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import attention, paged_attention, paged_decode, quantize_e4m3
from nano3.kernels.scaled import E4M3, E4M3_MAX
from nano3.model.forward_pass import WHOLE, Keys, Pass
from nano3.model.layers import Linear
from nano3.model.state.block import AttentionPages, AttentionState, BlockState
from nano3.model.state.step_plan import StepPlan


class Attention(nn.Module):
    """Causal attention; the order of tokens reaches it only through the Mamba-2 blocks around it.

    It has as many heads as its projections have rows for, which may be a part of the model's.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.fp8_cache = False  # keys and values as an FP8 cache gives them back; see LM.use_fp8_cache
        self.q_proj = Linear(cfg.d_model, cfg.n_heads * cfg.head_dim)
        self.k_proj = Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim)
        self.v_proj = Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim)
        self.o_proj = Linear(cfg.n_heads * cfg.head_dim, cfg.d_model)

    def forward(self, x: Tensor, around: Pass = WHOLE, state: BlockState = None) -> tuple[Tensor, None]:
        """x (B, T, D) -> (B, T, D); keys and values are appended to `state`."""
        around.check_whole()
        q, k, v = self.queries(x), self.keys(x), self.values(x)
        if isinstance(state, AttentionPages):
            y = _attend_pages(q[0], k[0], v[0], state, self._scales(state))
            return self.o_proj(y.flatten(-2).unsqueeze(0)), None
        if state is not None:
            assert isinstance(state, AttentionState)
            k, v = state.append(k, v)
        ids = around.document_ids
        if around.context is not None:
            k, v, ids = around.context.gather(around.block, Keys(k, v, ids))
        y = attention(q, k, v, document_ids=ids)
        return self.o_proj(y.flatten(-2)), None

    def queries(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, Hq, Dh)."""
        return self.q_proj(x).unflatten(-1, (-1, self.cfg.head_dim))

    def keys(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, Hkv, Dh)."""
        return self._cached(self.k_proj(x), self.k_proj._buffers.get("k_scale")).unflatten(-1, (-1, self.cfg.head_dim))

    def values(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, Hkv, Dh)."""
        return self._cached(self.v_proj(x), self.v_proj._buffers.get("v_scale")).unflatten(-1, (-1, self.cfg.head_dim))

    def _scales(self, state: AttentionPages) -> tuple[Tensor, Tensor] | None:
        """Of keys and values in e4m3 pages; None for pages that hold them as they are.

        Raises:
            ValueError: the pages are e4m3 and the model does not round to them.
        """
        if state.keys.dtype != E4M3:
            return None
        if not self.fp8_cache:
            raise ValueError("pages of float8_e4m3fn need a model with use_fp8_cache()")
        scales = self.k_proj._buffers["k_scale"], self.v_proj._buffers["v_scale"]
        assert scales[0] is not None, "use_fp8_cache has looked"
        assert scales[1] is not None, "use_fp8_cache has looked"
        return scales[0], scales[1]

    def _cached(self, y: Tensor, scale: Tensor | None) -> Tensor:
        """Keys or values rounded to e4m3 numbers times their scale, whether a cache is used or not, so that every way
        through the model computes the same."""
        if not self.fp8_cache or scale is None:
            return y
        return (quantize_e4m3(y.float(), scale) * scale).to(y.dtype)


def _attend_pages(
    q: Tensor, k: Tensor, v: Tensor, state: AttentionPages, scales: tuple[Tensor, Tensor] | None
) -> Tensor:
    """q (S, Hq, Dh), k and v (S, Hkv, Dh) of all sequences of the plan -> (S, Hq, Dh)."""
    assert state.plan is not None
    plan = state.plan
    if isinstance(plan, StepPlan):
        state.write(*((k, v) if scales is None else (_quotient(x, s) for x, s in zip((k, v), scales, strict=True))))
        return paged_decode(q, state.keys, state.values, plan.page_table, plan.key_counts, *(scales or ()))
    lengths = plan.page_table, plan.query_lengths, plan.key_lengths
    if scales is None:
        state.write(k, v)
        return paged_attention(q, state.keys, state.values, *lengths)
    # One scale for all keys, and one for all values, may be applied to the queries and to what comes out.
    state.write(*(_quotient(x, scale) for x, scale in zip((k, v), scales, strict=True)))
    y = paged_attention((q * scales[0]).to(q.dtype), state.keys, state.values, *lengths)
    return (y * scales[1]).to(q.dtype)


def _quotient(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX)
