"""A decoding step in one C++ call: the model's weights for it, and how many threads it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd import profiler
from torch.profiler import record_function

from nano3.kernels.cpu.draw import Draw
from nano3.kernels.cpu.program import decode as program
from nano3.kernels.cpu.program.check import problem as library_problem
from nano3.kernels.cpu.program.memory import Chosen
from nano3.model.attention import Attention
from nano3.model.block import Block
from nano3.model.decode.interface import Ahead, DecodingModel, Stepped
from nano3.model.decode.watch import Watched, strange
from nano3.model.layers import RMSNorm
from nano3.model.mamba2 import GatedRMSNorm, Mamba2
from nano3.model.mlp import MLP
from nano3.model.moe import Experts, MoE
from nano3.model.router import Router
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import Plan
from nano3.model.state.pool import StatePool
from nano3.openmp import cores_shared

ASKED_THREADS = "OMP_NUM_THREADS"
SMALL_STEP = 32 << 20
"""Bytes of weights, keys, values and states up to which a step takes one thread while other processes use the cores,
unless the environment says how many. Measured with the model of `nano3
pretrain` on 2 cores beside some 20 busy processes, 1 thread against 2: 2.4 against 8.8 ms for one sequence, 5.5 against
16.9 ms for 8."""


class ProgramSteps(Watched):
    """A model's program and what it was built from."""

    def __init__(self, model: DecodingModel) -> None:
        super().__init__(model)
        self.program: program.DecodeProgram | None = None
        self.problem = library_problem() or _rounded(model) or strange(model)
        if self.problem is None:
            try:
                self.program = _build(model)
            except (program.UnfitError, TypeError) as error:  # the latter: a setting that is no plain number
                self.problem = str(error)

    def run(self, tokens: Tensor, plan: Plan, state: HybridState, logits: bool, **options: bool) -> Stepped | None:
        states = [_block_state(block) for block in state.blocks]
        arguments = tokens.contiguous(), plan.slots, plan.page_table, plan.key_counts, states
        threads = self._threads(state.blocks, plan.key_lengths)
        result = self._call("run", *arguments, logits=logits, threads=threads, **options)
        if result is None:
            return None
        state.save(plan)
        return Stepped(*result)

    def choose(
        self, ahead: Sequence[Ahead], pool: StatePool, limit: int, draws: Sequence[Draw | None], **options: bool
    ) -> Chosen | None:
        states = [_block_state(block) for block in pool.blocks]
        tokens, slots, pages, lengths = zip(*ahead, strict=True)
        threads = self._threads(pool.blocks, lengths)
        return self._call("choose", tokens, slots, pages, lengths, states, limit, draws, threads=threads, **options)

    def _threads(self, blocks: Sequence[Any], lengths: Sequence[int]) -> int | None:
        """Threads for a step of sequences with so many keys; None: as many as PyTorch uses."""
        assert self.program is not None, "who asks has looked"
        read = self.program.weight_bytes
        if read > SMALL_STEP or ASKED_THREADS in os.environ or not cores_shared():
            return None
        for block in blocks:
            if isinstance(block, MambaSlots):
                read += len(lengths) * (block.conv[0].nbytes + block.ssm[0].nbytes)
            elif isinstance(block, AttentionPages):
                read += sum(lengths) * (block.keys[0, 0].nbytes + block.values[0, 0].nbytes)
        return 1 if read <= SMALL_STEP else None

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A method of the program; None (and nothing done) where it does not take the states."""
        assert self.program is not None, "who asks has looked"
        function = getattr(self.program, name)
        try:
            if not profiler._is_profiler_enabled:
                return function(*arguments, **options)
            with record_function("nano3::decoding step (cpu)"):
                return function(*arguments, **options)
        except program.UnfitError:
            return None


def _block_state(block) -> program.BlockState | None:
    if isinstance(block, MambaSlots):
        return program.BlockState(block.conv, block.ssm)
    return program.BlockState(block.keys, block.values) if isinstance(block, AttentionPages) else None


def _rounded(model: DecodingModel) -> str | None:
    cached = any(isinstance(module, Attention) and module.fp8_cache for module in model.modules())
    return "keys and values are rounded to FP8" if cached else None


def _build(model: DecodingModel) -> program.DecodeProgram:
    blocks = [_weights(block) for block in model.blocks]
    weights = model.embeddings.weight, blocks, model.norm_f.weight, model.lm_head.operand()
    return program.DecodeProgram(_sizes(model), *weights, model.compute_dtype)


def _sizes(model: DecodingModel) -> program.ProgramSizes:
    """As the modules have them now, which need not be what the model's configuration says."""
    modules = list(model.modules())
    mambas, attentions, experts, routers = (
        [m for m in modules if isinstance(m, kind)] for kind in (Mamba2, Attention, Experts, Router)
    )
    V, D = model.lm_head.operand().shape
    eps = _one("eps", [m.eps for m in modules if isinstance(m, RMSNorm | GatedRMSNorm)])
    sizes = program.ProgramSizes(D, V, eps)
    if mambas:
        c = _one("Mamba-2 configuration", [m.cfg for m in mambas])
        _one("number of groups", [c.n_groups, *(m.n_groups for m in modules if isinstance(m, GatedRMSNorm))])
        sizes = replace(sizes, H=c.mamba_n_heads, P=c.mamba_head_dim, N=c.d_state, G=c.n_groups, W=c.d_conv)
    if attentions:
        c = _one("attention configuration", [m.cfg for m in attentions])
        sizes = replace(sizes, kv_heads=c.n_kv_heads, query_heads=c.n_heads, head_dim=c.head_dim)
    if experts:
        E, F, _ = _one("experts' shape", [cast(Experts, m).operand("up_proj").shape for m in experts])
        K, scale = _one("top_k", [m.top_k for m in routers]), _one("scale", [m.scale for m in routers])
        sizes = replace(sizes, E=E, K=K, F=F, routed_scale=scale)
    return sizes


def _one(what: str, values: list[Any]) -> Any:
    """Of all blocks.

    Raises:
        UnfitError: they differ, or are tensors, whose values may change unseen.
    """
    if any(isinstance(value, Tensor) or value != values[0] for value in values):
        raise program.UnfitError(f"not all blocks have the same {what}, as a number")
    return values[0]


def _weights(block: nn.Module) -> program.BlockWeights:
    assert isinstance(block, Block)
    return _WEIGHTS[type(block.mixer)](block.norm.weight, block.mixer)


def _mamba(norm: Tensor, m: Mamba2) -> program.MambaWeights:
    return program.MambaWeights(
        norm, m.in_proj.operand(), m.conv1d.weight, m.conv1d.bias, m.A_log, m.D, m.dt_bias, m.norm.weight,
        m.out_proj.operand(),
    )  # fmt: skip


def _attention(norm: Tensor, m: Attention) -> program.AttentionWeights:
    return program.AttentionWeights(
        norm, m.q_proj.operand(), m.k_proj.operand(), m.v_proj.operand(), m.o_proj.operand()
    )


def _experts(norm: Tensor, m: MoE) -> program.ExpertWeights:
    shared = m.shared_experts
    up, down = (None, None) if shared is None else (shared.up_proj.operand(), shared.down_proj.operand())
    bias, experts = m.gate.e_score_correction_bias, (m.experts.operand("up_proj"), m.experts.operand("down_proj"))
    return program.ExpertWeights(norm, m.gate.weight, bias, *experts, up, down)


def _mlp(norm: Tensor, m: MLP) -> program.MlpWeights:
    return program.MlpWeights(norm, m.up_proj.operand(), m.down_proj.operand())


_WEIGHTS = {Mamba2: _mamba, Attention: _attention, MoE: _experts, MLP: _mlp}
