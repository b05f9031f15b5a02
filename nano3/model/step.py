"""One token of each of many sequences through the whole model in one C++ call, where that is possible.

`LM.hidden` comes here first. The result equals that of the blocks one after the other within rounding. Activations are
float32 whatever the compute dtype; where that is bfloat16, processors with bfloat16 products may round them to it as
they multiply by bfloat16 weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nano3.kernels.cpu.draw import Draw
from nano3.kernels.cpu.program.check import problem as library_problem
from nano3.kernels.cpu.program.memory import Chosen
from nano3.model.decode.interface import Ahead, DecodingModel, Stepped
from nano3.model.decode.program import ProgramSteps
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import MOST_STEPS, Plan
from nano3.model.state.pool import StatePool

__all__ = ["Ahead", "Stepped", "choosing_step", "explain", "forced_elsewhere", "step", "why_not"]

ENVIRONMENT = "NANO3_BACKEND"


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


def _steps(model: DecodingModel) -> ProgramSteps | None:
    """Of the model as it is now; None where it has to go op by op."""
    steps = _current(model)
    return steps if steps.program is not None else None


def _current(model: DecodingModel) -> ProgramSteps:
    steps = _STEPS.get(model)
    if steps is None or steps.compute != model.compute_dtype or not steps.holds():
        steps = _STEPS[model] = ProgramSteps(model)
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


_STEPS: WeakKeyDictionary[DecodingModel, ProgramSteps] = WeakKeyDictionary()


def forced_elsewhere() -> bool:
    """Whether the environment asks for another backend than C++."""
    return os.environ.get(ENVIRONMENT, "") not in ("", "cpu")


def _plan(state: HybridState) -> Plan | None:
    for block in state.blocks:
        if block is not None:
            return block.plan if isinstance(block, MambaSlots | AttentionPages) else None
    return None
