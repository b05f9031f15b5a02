"""One token of each of many sequences through the whole model at once, where that is possible.

On CPUs that is one C++ call, on GPUs a CUDA graph. `LM.hidden` comes here first. The result equals that of the blocks
one after the other within rounding. In C++ activations are float32 whatever the compute dtype; where that is bfloat16,
processors with bfloat16 products may round them to it as they multiply by bfloat16 weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels.cpu.draw import Draw
from nano3.kernels.cpu.program.check import problem as library_problem
from nano3.kernels.cpu.program.memory import MOST_SEQUENCES, Chosen
from nano3.model.decode.graphed import MOST_ROWS, GraphSteps
from nano3.model.decode.interface import Ahead, DecodingModel, Stepped
from nano3.model.decode.program import ProgramSteps
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import Plan
from nano3.model.state.pool import StatePool

__all__ = [
    "Ahead",
    "Stepped",
    "check_environment",
    "choosing_step",
    "explain",
    "forced_elsewhere",
    "most_rows",
    "release",
    "step",
    "why_not",
]

ENVIRONMENT, GRAPHS = "NANO3_BACKEND", "NANO3_GRAPHS"
"""The latter: 0 for no CUDA graphs; 1 for their step on CPUs too, where it is computed op by op."""


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
    plan = _plan(state)
    if plan is None or not plan.is_step or tokens.shape != (1, plan.n_tokens):
        return None
    steps = _steps(model, plan.n_tokens)
    if isinstance(steps, GraphSteps):
        return steps.run(model, tokens[0], plan, state, experts=experts, exact=exact)
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
    """As `step`, and the next token of each sequence, among the ids below `limit`, without the logits leaving C++, or
    the GPU.

    Args:
        ahead: up to `most_rows` tokens of different sequences. Their pages are looked at, so that only new ones are
            copied.
        pool: their states.
        draws: how to choose the token of each; None for a sequence whose logits are wanted instead. A graph leaves
            those without a token too whose cut lies too deep for it.
        experts: whether the experts that each token uses are wanted.
        exact: results do not depend on what other sequences are beside, to the last bit; slower where bfloat16
            products are fast.
    """
    if limit < 1:
        return None
    steps = _steps(model, len(ahead))
    if steps is None:
        return None
    arguments = ahead, pool, limit, draws
    if isinstance(steps, GraphSteps):
        return steps.choose(model, *arguments, experts=experts, exact=exact)
    return steps.choose(*arguments, experts=experts, exact=exact)


def most_rows(model: DecodingModel) -> int:
    """Sequences that a step takes at a time."""
    return MOST_ROWS if _in_graphs(model.embeddings.weight.device) else MOST_SEQUENCES


def _in_graphs(device: torch.device) -> bool:
    """Whether a step is that of CUDA graphs, if any."""
    asked = os.environ.get(GRAPHS, "")
    if asked not in ("", "0", "1"):
        raise UserError(f"{GRAPHS} is {asked!r}; it is 0 for no CUDA graphs, or 1 for their step on CPUs too")
    return asked == "1" or (not asked and device.type == "cuda")


def check_environment(device: torch.device) -> None:
    """Of NANO3_GRAPHS.

    Raises:
        UserError: it has a value that means nothing.
    """
    _in_graphs(device)


def _steps(model: DecodingModel, rows: int) -> ProgramSteps | GraphSteps | None:
    """Of the model as it is now; None where so many rows have to go op by op."""
    device = model.embeddings.weight.device
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not 0 < rows <= most_rows(model):
        return None
    if _in_graphs(device):
        steps = None if torch.is_autocast_enabled(device.type) else _current_graphs(model)
        return None if steps is None or steps.problem else steps
    if forced_elsewhere():
        return None
    steps = _current(model)
    return steps if steps.program is not None else None


def _current(model: DecodingModel) -> ProgramSteps:
    steps = _STEPS.get(model)
    if steps is None or steps.compute != model.compute_dtype or not steps.holds():
        steps = _STEPS[model] = ProgramSteps(model)
    return steps


def _current_graphs(model: DecodingModel) -> GraphSteps:
    steps, now = _GRAPHS.get(model), (model.compute_dtype, os.environ.get(ENVIRONMENT, ""))
    if steps is None or (steps.compute, steps.backend) != now or not steps.holds():
        steps = _GRAPHS[model] = GraphSteps(model, now[1])
    return steps


def why_not(model: DecodingModel | None = None) -> str | None:
    """Why decoding goes op by op, on this machine or with this model; None where it is one C++ call or CUDA graphs."""
    if model is not None and _in_graphs(model.embeddings.weight.device):
        return _current_graphs(model).problem
    if model is not None and model.embeddings.weight.is_cuda:
        return f"{GRAPHS} is 0"
    if forced_elsewhere():
        return f"{ENVIRONMENT} is {os.environ[ENVIRONMENT]}"
    if (problem := library_problem()) is not None or model is None:
        return problem
    return _current(model).problem


def release(model: DecodingModel) -> None:
    """Free what graphs of the model hold; the next step makes them anew."""
    _GRAPHS.pop(model, None)


def explain(model: DecodingModel | None = None, device: torch.device | str = "cpu") -> tuple[str, str]:
    """Backend and reason of the decoding step, as `nano3.kernels.explain` gives them of each op; of a model, or of any
    on `device`."""
    where = torch.device(device) if model is None else model.embeddings.weight.device
    if not _in_graphs(where):
        problem = f"{GRAPHS} is 0" if where.type == "cuda" else why_not(model)
        return ("cpu", "decoding step: one C++ call") if problem is None else ("op by op", problem)
    problem = None if model is None else why_not(model)
    if problem is not None:
        return "op by op", problem
    asked = "" if where.type == "cuda" else f", as {GRAPHS} asks for, computed as they stand"
    return "graph", f"decoding step: CUDA graphs for up to {MOST_ROWS} sequences{asked}"


_STEPS: WeakKeyDictionary[DecodingModel, ProgramSteps] = WeakKeyDictionary()
_GRAPHS: WeakKeyDictionary[DecodingModel, GraphSteps] = WeakKeyDictionary()


def forced_elsewhere() -> bool:
    """Whether the environment asks for another backend than C++."""
    return os.environ.get(ENVIRONMENT, "") not in ("", "cpu")


def _plan(state: HybridState) -> Plan | None:
    for block in state.blocks:
        if block is not None:
            plan = block.plan if isinstance(block, MambaSlots | AttentionPages) else None
            return plan if isinstance(plan, Plan) else None
    return None
