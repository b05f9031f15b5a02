"""One token of each of many sequences through the whole model in one C++ call, where that is possible.

`LM.hidden` comes here first. The result equals that of the blocks one after the other within rounding. Activations are
float32 whatever the compute dtype; where that is bfloat16, processors with bfloat16 products may round them to it as
they multiply by bfloat16 weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.profiler import record_function

from nano3.kernels.cpu.draw import Draw
from nano3.kernels.cpu.program import decode as program
from nano3.kernels.cpu.program.check import problem as library_problem
from nano3.kernels.cpu.program.memory import Chosen
from nano3.kernels.scaled import FLOATS
from nano3.model.attention import Attention
from nano3.model.block import Block
from nano3.model.layers import Linear, RMSNorm
from nano3.model.mamba2 import CausalConv1d, GatedRMSNorm, Mamba2
from nano3.model.mlp import MLP
from nano3.model.moe import Experts, MoE
from nano3.model.router import Router
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import MOST_STEPS, Plan
from nano3.model.state.pool import StatePool
from nano3.openmp import cores_shared

ENVIRONMENT, ASKED_THREADS = "NANO3_BACKEND", "OMP_NUM_THREADS"
SMALL_STEP = 32 << 20
"""Bytes of weights, keys, values and states up to which a step takes one thread while other processes use the cores,
unless the environment says how many. Measured with the model of `nano3
pretrain` on 2 cores beside some 20 busy processes, 1 thread against 2: 2.4 against 8.8 ms for one sequence, 5.5 against
16.9 ms for 8."""
PLAIN = {nn.Embedding, nn.ModuleList, Block, RMSNorm, Linear, Mamba2, CausalConv1d, GatedRMSNorm}
PLAIN |= {Attention, MoE, Experts, Router, MLP}
"""Modules whose computation the program knows; a model with others inside goes op by op."""

SCALARS: dict[type, tuple[str, ...]] = {
    nn.Embedding: ("max_norm",),
    RMSNorm: ("eps",),
    GatedRMSNorm: ("eps", "group_width"),
    Mamba2: ("cfg",),
    Attention: ("cfg", "fp8_cache"),
    Router: ("top_k", "scale"),
}
"""Attributes of modules that their computation hangs on, besides weights."""

_DTYPE = attrgetter("dtype")


class DecodingModel(Protocol):
    """A language model as this module looks at it (nano3.model.lm.LM)."""

    compute_dtype: torch.dtype
    embeddings: nn.Embedding
    blocks: nn.ModuleList
    norm_f: RMSNorm
    lm_head: Linear

    def modules(self) -> Iterator[nn.Module]:
        """All modules, itself among them."""
        ...


class Stepped(NamedTuple):
    """Result of a step of n sequences."""

    hidden: Tensor
    """(n, D) float32 after the final norm."""
    logits: Tensor | None
    """(n, V) float32."""
    expert_ids: Tensor | None = None
    """(mixture blocks, n, K) int16: the experts that each token used, where they were asked for."""


class Ahead(NamedTuple):
    """One token of one sequence."""

    token: int
    slot: int
    pages: list[int]
    """Enough for `length`."""
    length: int
    """Tokens of the sequence with this one."""


def step(
    model: DecodingModel,
    tokens: Tensor,
    state: HybridState,
    *,
    logits: bool = False,
    experts: bool = False,
    exact: bool = False,
) -> Stepped | None:
    """Advance the sequences of the state's plan by one token each; None (and nothing done) where it has to go op by op.

    Args:
        tokens: (1, n).
        state: of a pool, under the plan of this pass.
        logits: whether they are wanted.
        experts: whether the experts that each token uses are wanted.
        exact: results do not depend on what other sequences are beside, to the last bit; slower where bfloat16
            products are fast.
    """
    if _goes_apart():
        return None
    plan = _plan(state)
    if plan is None or not plan.is_step or tokens.shape != (1, plan.n_tokens):
        return None
    steps = _steps(model)
    return None if steps is None else steps.run(tokens[0], plan, state, logits, experts=experts, exact=exact)


def choosing_step(
    model: DecodingModel,
    ahead: Sequence[Ahead],
    pool: StatePool,
    limit: int,
    draws: Sequence[Draw | None],
    *,
    experts: bool = False,
    exact: bool = False,
) -> Chosen | None:
    """As `step`, and the next token of each sequence, among the ids below `limit`, without the logits leaving C++.

    Args:
        ahead: up to MOST_STEPS tokens of different sequences.
        pool: their states.
        draws: how to choose the token of each; None for a sequence whose logits are wanted instead.
        experts: whether the experts that each token uses are wanted.
        exact: results do not depend on what other sequences are beside, to the last bit; slower where bfloat16
            products are fast.
    """
    if _goes_apart() or not 0 < len(ahead) <= MOST_STEPS or limit < 1:
        return None
    steps = _steps(model)
    return None if steps is None else steps.choose(ahead, pool, limit, draws, experts=experts, exact=exact)


def _goes_apart() -> bool:
    """Whether it has to go op by op, whatever the model is."""
    return torch.is_grad_enabled() or forced_elsewhere() or torch.compiler.is_compiling()


def _steps(model: DecodingModel) -> _Steps | None:
    """Of the model as it is now; None where it has to go op by op."""
    steps = _current(model)
    return steps if steps.program is not None else None


def _current(model: DecodingModel) -> _Steps:
    steps = _STEPS.get(model)
    if steps is None or steps.compute != model.compute_dtype or not steps.holds():
        steps = _STEPS[model] = _Steps(model)
    return steps


def why_not(model: DecodingModel | None = None) -> str | None:
    """Why decoding goes op by op, on this machine or with this model; None where it is one C++ call."""
    if forced_elsewhere():
        return f"{ENVIRONMENT} is {os.environ[ENVIRONMENT]}"
    if (problem := library_problem()) is not None or model is None:
        return problem
    return _current(model).problem


def explain(model: DecodingModel | None = None) -> tuple[str, str]:
    """Backend and reason of the decoding step, as `nano3.kernels.explain` gives them of each op."""
    problem = why_not(model)
    return ("cpu", "decoding step: one C++ call") if problem is None else ("op by op", problem)


class _Steps:
    """A model's program and what it was built from. No reference to the model itself: it is the key to this."""

    def __init__(self, model: DecodingModel) -> None:
        self.compute = model.compute_dtype
        modules = list(model.modules())
        self._contents = [d for m in modules for d in (m._parameters, m._buffers, m._modules) if d]
        self._then = [dict(d) for d in self._contents]
        values = list(chain.from_iterable(map(dict.values, self._contents)))
        # Of these, equality below says nothing about identity.
        self._single = [d for d in self._contents if any(isinstance(t, Tensor) and t.numel() == 1 for t in d.values())]
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self._children = [value for value in values if isinstance(value, nn.Module)]
        self._hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        # Not the model's own: a function put there may refer to the model.
        self._attributes = [vars(m) for m in modules if m is not model]
        self._places = [(vars(m), name) for m in modules for name in SCALARS.get(type(m), ())]
        self._seen = self._look()
        self.program: program.DecodeProgram | None = None
        self.problem = library_problem() or _rounded(model) or _strange(model)
        if self.problem is None:
            try:
                self.program = _build(model)
            except (program.UnfitError, TypeError) as error:  # the latter: a setting that is no plain number
                self.problem = str(error)

    def holds(self) -> bool:
        """Whether modules, their settings, and the places, types and sizes of all weights are those of then; the
        weights' values may have changed."""
        try:
            return self._contents == self._then and self._look() == self._seen
        except RuntimeError:  # two tensors in the same place have no truth together: one was replaced
            return False

    def _look(self) -> list:
        # Every step comes here: no loops of Python's own.
        return [
            list(map(Tensor.data_ptr, self._tensors)),
            list(map(_DTYPE, self._tensors)),
            # Dense, with as many numbers: no other shape would fit the modules around it. Shapes take twice the time.
            list(map(Tensor.numel, self._tensors)),
            all(map(Tensor.is_contiguous, self._tensors)),  # no program is built where one is not
            list(map(id, chain.from_iterable(map(dict.values, self._single)))),
            list(map(type, self._children)),
            any(self._hooks),
            list(map(len, self._attributes)),  # one more where a method is replaced
            [attributes.get(name) for attributes, name in self._places],
        ]

    def run(self, tokens: Tensor, plan: Plan, state: HybridState, logits: bool, **options: bool) -> Stepped | None:
        states = [_block_state(block) for block in state.blocks]
        arguments = tokens.contiguous(), plan.slots, plan.page_table, plan.key_counts, states
        threads = self._threads(state.blocks, plan.key_lengths)
        result = self._call("run", *arguments, logits=logits, threads=threads, **options)
        if result is None:
            return None
        if plan.has_saves:
            for block in state.blocks:
                if isinstance(block, MambaSlots):
                    for part in plan.rounds:
                        block.save(part)
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


_STEPS: WeakKeyDictionary[DecodingModel, _Steps] = WeakKeyDictionary()


def forced_elsewhere() -> bool:
    """Whether the environment asks for another backend than C++."""
    return os.environ.get(ENVIRONMENT, "") not in ("", "cpu")


def _plan(state: HybridState) -> Plan | None:
    for block in state.blocks:
        if block is not None:
            return block.plan if isinstance(block, MambaSlots | AttentionPages) else None
    return None


def _block_state(block) -> program.BlockState | None:
    if isinstance(block, MambaSlots):
        return program.BlockState(block.conv, block.ssm)
    return program.BlockState(block.keys, block.values) if isinstance(block, AttentionPages) else None


def _rounded(model: DecodingModel) -> str | None:
    cached = any(isinstance(module, Attention) and module.fp8_cache for module in model.modules())
    return "keys and values are rounded to FP8" if cached else None


def _strange(model: DecodingModel) -> str | None:
    """What in the model the program does not know."""
    for module in model.modules():
        if module is not model and type(module) not in PLAIN:
            return f"the model has a {type(module).__name__}"
        replaced = any(callable(getattr(type(module), name, None)) for name in vars(module))
        if (replaced and module is not model) or module._forward_hooks or module._forward_pre_hooks:
            return f"a {type(module).__name__} of the model is hooked"
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            return "the model's embeddings have a max_norm"
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is None or type(tensor) not in (nn.Parameter, Tensor):
                return f"a weight of the model is a {type(tensor).__name__}"
            if tensor.dtype not in FLOATS and not isinstance(module, Linear | Experts):
                kind = str(tensor.dtype).removeprefix("torch.")
                return f"a {name} of the model's {type(module).__name__} modules is {kind}"
    return None


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
