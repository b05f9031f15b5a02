"""One optimizer step over a global batch: forward, backward, check, clip, update, balance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.train.balance import update_biases
from nano3.train.feed import to_device
from nano3.train.loss import LossFunction, Scale
from nano3.train.optimizer import clip_gradients, gradient_norm, parameters_of
from nano3.train.parallel import sync_gradients
from nano3.train.world import World

SHOWN_DOCUMENTS = 8
"""Documents named in an error."""


class NonFiniteError(UserError):
    """The loss or the gradient became NaN or infinite; the update was not applied."""


@dataclass(frozen=True)
class StepResult:
    """One step, over all ranks."""

    loss: float
    """Mean negative log-likelihood of the valid targets, in nats."""
    balance_loss: float
    """Mean load-balancing loss, without its coefficient."""
    grad_norm: float
    """Global gradient norm before clipping."""
    loads: Tensor
    """(number of mixture blocks, E) int64: tokens routed to each expert."""
    stop: bool
    """Whether any rank was asked to stop."""


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step."""

    model: Any
    """The model, parallelised."""
    optimizer: torch.optim.Optimizer
    """Over the model's trainable parameters."""
    loss: LossFunction
    """The stage's loss."""
    world: World
    """All ranks."""
    clip_norm: float
    """Largest gradient norm; 0 for any."""
    bias_rate: float
    """Step of the expert biases."""


def run_step(recipe: Recipe, batches: Sequence[Any], stop: Callable[[], bool]) -> StepResult:
    """Train on this rank's micro-batches `batches`; `stop()` is asked, late, whether this rank was told to stop.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; weights, moments and biases are as before.
    """
    world = recipe.world
    losses, totals, loads = _accumulate(recipe, batches)
    totals = torch.cat([totals, totals.new_tensor([float(stop())])])
    loss, balance, stopping = world.sum(totals).tolist()
    sync_gradients(recipe.model, world)
    parameters = parameters_of(recipe.optimizer)
    norm = gradient_norm(parameters)
    result = StepResult(loss, balance, norm.item(), world.sum(loads), stopping > 0)
    if not (torch.isfinite(totals).all() and torch.isfinite(norm)):
        recipe.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(_explain(result, losses, batches, world))
    clip_gradients(parameters, norm, recipe.clip_norm)
    recipe.optimizer.step()
    recipe.optimizer.zero_grad(set_to_none=True)
    update_biases(recipe.model.expert_biases(), result.loads, recipe.bias_rate)
    return result


def _accumulate(recipe: Recipe, batches: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of all micro-batches; returns their losses, (nll, balance) in float64 and the loads, of this rank."""
    world = recipe.world
    targets = world.sum(torch.tensor(sum(batch.n_targets for batch in batches), device=world.device))
    scale = Scale(int(targets), len(batches) * world.size)
    losses, balances, loads = [], [], []
    for batch in batches:
        parts = recipe.loss(recipe.model, to_device(batch, world.device), scale)
        parts.total.backward()
        losses.append(parts.nll.double())
        balances.append(parts.balance.double())
        loads.append(parts.loads)
    nll, balance = torch.stack(losses), torch.stack(balances)
    return nll, torch.stack([nll.sum(), balance.sum()]), torch.stack(loads).sum(0)


def _explain(result: StepResult, losses: Tensor, batches: Sequence[Any], world: World) -> str:
    """What became non-finite, and the documents of the micro-batches where it happened (all, if only the gradient)."""
    bad = [batch for batch, loss in zip(batches, losses.tolist(), strict=True) if not abs(loss) < float("inf")]
    here = [name for batch in bad for name in batch.documents]
    names = [name for part in world.gather(here) for name in part]
    if not names:
        names = [n for part in world.gather([n for batch in batches for n in batch.documents]) for n in part]
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - SHOWN_DOCUMENTS} more" if len(unique) > SHOWN_DOCUMENTS else ""
    what = f"loss {result.loss}, gradient norm {result.grad_norm}"
    return f"{what} in a batch of the documents {', '.join(unique[:SHOWN_DOCUMENTS])}{more}"
