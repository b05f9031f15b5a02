"""One optimizer step over a global batch: forward, backward, check, clip, update, balance."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nano3.config.errors import UserError
from nano3.config.model import MOE
from nano3.kernels.narrow import kept
from nano3.parallel.pipeline import Part, Pipeline, numbered_blocks
from nano3.parallel.plan import sharded_modules
from nano3.parallel.precision import narrow_parameters
from nano3.train.balance import update_biases
from nano3.train.feed import sequence_length, to_device
from nano3.train.loss import LossFunction, LossParts, Scale
from nano3.train.optimizer import clip_gradients, gradient_norm, parameters_of
from nano3.train.parallel import sync_gradients
from nano3.train.tally import Metric, Tally
from nano3.train.world import Group, World, attempt

SHOWN_DOCUMENTS = 8
"""Documents named in an error."""
SHOWN_RANKS = 4
"""Ranks named in an error."""


class NonFiniteError(UserError):
    """The loss or the gradient became NaN or infinite; the update was not applied."""


@dataclass(frozen=True)
class StepResult:
    """One step, over all ranks."""

    metrics: dict[str, float]
    """What the loss reports, by name; a name with a count of 0 is left out."""
    shown: str
    """The one of them that the run shows."""
    grad_norm: float
    """Global gradient norm before clipping."""
    loads: Tensor
    """(number of mixture blocks, E) int64: tokens routed to each expert."""
    stop: bool
    """Whether any rank was asked to stop."""

    @property
    def loss(self) -> float:
        """The metric that the run shows; NaN where this step has none."""
        return self.metrics.get(self.shown, math.nan)


@dataclass(frozen=True)
class Totals:
    """Size of a step, over all ranks and micro-batches; known before its first forward pass."""

    targets: int
    """Valid targets."""
    micro_batches: int
    """Micro-batches that are not padding alone."""
    tokens: int
    """Tokens that are no padding."""
    flops: float
    """Floating-point operations of training on these tokens."""

    @property
    def scale(self) -> Scale:
        """What the sums of a micro-batch are divided by."""
        return Scale(self.targets, self.micro_batches)


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
    tally: Tally
    """Adds up the loss's metrics."""
    pipeline: Pipeline | None = None
    """Runs the passes where ranks hold different blocks of the model."""


def count(
    batches: Sequence[Any],
    world: World,
    flops_per_token: Callable[[int], float] | None = None,
    error: BaseException | None = None,
) -> Totals:
    """Size of the step of which this rank has `batches`; every rank must call.

    Args:
        batches: this rank's micro-batches.
        world: the ranks.
        flops_per_token: operations of training on a token, by sequence length.
        error: why this rank has no batches: raised here, as is what the batches raise, and as a UserError on the
            other ranks.

    Raises:
        UserError: ranks have different numbers of micro-batches, or there is no token.
    """
    mine = [0.0] * 4

    def measure() -> None:
        mine[:] = _size(batches, flops_per_token or (lambda length: 0.0))

    error, n = error or attempt(measure), len(batches)
    micro_batches, squares, failed, *sums = _sums(world, [n, n * n, float(error is not None)], mine)
    if failed:
        world.agree(error)
    # The sum of squares is as small as that only where all are equal.
    if squares * world.size != micro_batches**2:
        counts = ", ".join(map(str, world.gather(n)))
        raise UserError(
            f"ranks have different numbers of micro-batches in a step ({counts}): a source gives all as many"
        )
    if not sums[1]:
        raise UserError("a step has no tokens: a source gives at least one micro-batch with text in it")
    n_batches = sums[3] if world.sequence.size == 1 else _whole_batches(batches, world)
    return Totals(int(sums[0]), int(n_batches), int(sums[1]), sums[2])


def _whole_batches(batches: Sequence[Any], world: World) -> float:
    """Micro-batches with any token, where several ranks hold slices of each: it counts once for all of them."""
    tokens = torch.tensor([float(batch.n_tokens) for batch in batches], dtype=torch.float64, device=world.device)
    return world.data.sum((world.sequence.sum(tokens) > 0).sum().double()).item()


def _size(batches: Sequence[Any], cost: Callable[[int], float]) -> list[float]:
    """Targets, tokens, operations and micro-batches with any token, of this rank."""
    tokens = [int(batch.n_tokens) for batch in batches]
    flops = sum(n * cost(sequence_length(batch)) for n, batch in zip(tokens, batches, strict=True))
    return [sum(int(batch.n_targets) for batch in batches), sum(tokens), flops, sum(n > 0 for n in tokens)]


def _sums(world: World, of_all: list[float], of_loss: list[float]) -> list[float]:
    """Numbers summed over all ranks, then others over those of the loss: at once where these are the same."""
    values = torch.tensor([*of_all, *of_loss], dtype=torch.float64, device=world.device)
    with world.waits.counted(world.device):
        if world.loss.size == world.size:
            return world.loss.sum(values).tolist()
        head, tail = values.split([len(of_all), len(of_loss)])
        return [*Group(world.rank, world.size).sum(head.clone()).tolist(), *world.loss.sum(tail.clone()).tolist()]


def run_step(
    recipe: Recipe, batches: Sequence[Any], stop: Callable[[], bool], totals: Totals | None = None
) -> StepResult:
    """Train on this rank's micro-batches `batches`; `stop()` is asked, late, whether this rank was told to stop.

    A step in which no rank has a target changes nothing, and has no metrics. `totals`: the `count` of the step, made
    here if it is not given.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; weights, moments and biases are as before.
    """
    world = recipe.world
    totals = totals or count(batches, world)
    if not totals.targets:
        return _without_targets(recipe, stop)
    run = _accumulate if recipe.pipeline is None else _accumulate_in_stages
    parts = run(recipe, batches, totals.scale)
    losses = torch.stack([part.total.detach().double() for part in parts])
    extra = torch.stack([losses.sum(), losses.new_tensor(float(stop()))])
    with world.waits.counted(world.device):
        metrics, (objective, stopping) = recipe.tally.add_up([part.metrics for part in parts], extra)
    sync_gradients(recipe.model, world)
    parameters = parameters_of(recipe.optimizer)
    norm = _over_stages(gradient_norm(parameters), world)
    loads = world.loss.sum(torch.stack([part.loads for part in parts]).sum(0))
    finite = math.isfinite(objective) and math.isfinite(norm.item())
    bad, stopping = world.everywhere(losses.new_tensor([float(not finite), stopping])).tolist()
    result = StepResult(metrics, recipe.loss.shown, norm.item(), _of_all_blocks(loads, recipe), stopping > 0)
    if bad:
        places = _places(losses, parameters, world)
        recipe.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(_explain(objective, result.grad_norm, losses, batches, world, places))
    clip_gradients(parameters, norm, recipe.clip_norm)
    recipe.optimizer.step()
    recipe.optimizer.zero_grad(set_to_none=True)
    update_biases(recipe.model.expert_biases(), loads, recipe.bias_rate)
    return result


def _without_targets(recipe: Recipe, stop: Callable[[], bool]) -> StepResult:
    """The result of a step that trains nothing."""
    biases, world = recipe.model.expert_biases(), recipe.world
    loads = torch.zeros(len(biases), len(biases[0]) if biases else 0, dtype=torch.int64, device=world.device)
    loads = _of_all_blocks(loads, recipe)
    stopping = Group(world.rank, world.size).sum(torch.tensor(float(stop()), device=world.device)).item()
    return StepResult({}, recipe.loss.shown, 0.0, loads, stopping > 0)


def names_of(batches: Sequence[Any], world: World) -> str:
    """The first documents of all ranks' `batches`, to be named in a message; every rank must call."""
    unique = list(
        dict.fromkeys(name for part in world.gather([n for b in batches for n in b.documents]) for name in part)
    )
    more = f" and {len(unique) - SHOWN_DOCUMENTS} more" if len(unique) > SHOWN_DOCUMENTS else ""
    return f"{', '.join(unique[:SHOWN_DOCUMENTS])}{more}"


def _accumulate(recipe: Recipe, batches: Sequence[Any], scale: Scale) -> list[LossParts]:
    """Adds up the gradients of this rank's micro-batches; returns what the loss gave for each."""
    found = []
    with _weights_kept(recipe):
        for batch in batches:
            parts = recipe.loss(recipe.model, to_device(batch, recipe.world.device), scale)
            parts.total.backward()
            found.append(replace(parts, total=parts.total.detach()))
    return found


def _weights_kept(recipe: Recipe) -> AbstractContextManager:
    """Weights in the compute type, made once for all micro-batches of a step, of a model that is whole on a GPU: shards
    are gathered in that type anyway, and C++ kernels have no use for copies."""
    if recipe.world.device.type == "cpu" or sharded_modules(recipe.model):
        return nullcontext()
    return kept(narrow_parameters(recipe.model))


def _accumulate_in_stages(recipe: Recipe, batches: Sequence[Any], scale: Scale) -> list[LossParts]:
    """The same where this rank has some blocks: of each micro-batch, what these add to the loss."""
    assert recipe.pipeline is not None
    found: list[list[LossParts]] = [[] for _ in batches]

    def loss(part: Part, i: int) -> Tensor:
        parts = recipe.loss(part, to_device(batches[i], recipe.world.device), scale)
        found[i].append(replace(parts, total=parts.total.detach()))
        return parts.total

    with _weights_kept(recipe):
        recipe.pipeline.train([tuple(batch.tokens.shape) for batch in batches], loss)
    return [_joined(parts) for parts in found]


def _joined(parts: Sequence[LossParts]) -> LossParts:
    """What several stages of one rank give for a micro-batch, in the order of their blocks."""
    names = parts[0].metrics
    metrics: dict[str, Metric] = {n: (torch.stack([part.metrics[n][0] for part in parts]).sum(), None) for n in names}
    loads = [part.loads for part in parts if part.loads.numel()] or [parts[0].loads]
    return LossParts(torch.stack([part.total for part in parts]).sum(), metrics, torch.cat(loads))


def _over_stages(norm: Tensor, world: World) -> Tensor:
    """The norm of all stages' gradients from that of this one's."""
    if world.pipeline.size == 1:
        return norm
    return world.pipeline.sum(norm.to(world.device).double().square()).sqrt().to(norm)


def _of_all_blocks(loads: Tensor, recipe: Recipe) -> Tensor:
    """Loads of the mixture blocks of all stages, from those of this rank's."""
    if recipe.pipeline is None:
        return loads
    cfg, held = recipe.model.cfg, {number for number, _ in numbered_blocks(recipe.model)}
    places = [place for place, number in enumerate(cfg.blocks(MOE)) if number in held]
    whole = loads.new_zeros(len(cfg.blocks(MOE)), cfg.n_experts if cfg.blocks(MOE) else 0)
    if places:
        whole[places] = loads
    return recipe.world.pipeline.sum(whole)


def _places(losses: Tensor, parameters: Sequence[Tensor], world: World) -> str:
    """Where a step became non-finite: the ranks with such a loss or, if none has one, with such a part of the gradient,
    which was summed over all; every rank must call. Empty for a world of one."""
    if world.size == 1:
        return ""
    gradients = (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None)
    broken = not all(bool(gradient.isfinite().all()) for gradient in gradients)
    found = world.gather((not bool(losses.isfinite().all()), broken, socket.gethostname()))
    kind = 0 if any(loss for loss, *_ in found) else 1
    names = [f"rank {rank} ({told[2]})" for rank, told in enumerate(found) if told[kind]]
    listed = ", ".join(names[:SHOWN_RANKS]) + (f" and {len(names) - SHOWN_RANKS} more" * (len(names) > SHOWN_RANKS))
    return f", first seen on {listed},"


def _explain(loss: float, grad_norm: float, losses: Tensor, batches: Sequence[Any], world: World, places: str) -> str:
    """What became non-finite, and the documents of the micro-batches where it happened (all, if only the gradient)."""
    bad = [batch for batch, loss in zip(batches, losses.tolist(), strict=True) if not abs(loss) < float("inf")]
    names = names_of(bad, world) or names_of(batches, world)
    return f"loss {loss}, gradient norm {grad_norm}{places} in a batch of the documents {names}"
