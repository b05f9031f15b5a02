"""The full training state as one flat dictionary of tensors, the form in which it is saved and loaded."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
RNG = "rng."
"""Prefix of random number states, one set a rank."""


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers (expert biases) and optimizer moments by name: the live tensors, not copies.

    Moments that do not exist yet are created as zeros, so the same call serves saving and loading.
    """
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    moments = {}
    for name, parameter in named_trained(model, optimizer):
        state = _moments_of(parameter, optimizer)
        moments |= {f"optimizer.{name}.{moment}": state[moment] for moment in MOMENTS}
    return weights | moments


def optimizer_steps(optimizer: torch.optim.Optimizer) -> int:
    """Updates made so far (AdamW's bias correction needs it); the same for all parameters."""
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(steps, default=0)


def set_optimizer_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Continue bias correction after `steps` updates."""
    for state in optimizer.state.values():
        state["step"].fill_(float(steps))


def named_trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """Name and tensor of each parameter that `optimizer` updates."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in trained]


def rng_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """This rank's random number states: torch on CPU, torch on the device, and Python's."""
    version, words, gauss = random.getstate()
    assert version == 3, "Python changed its random state"
    states = {
        f"{RNG}{rank}.torch": torch.get_rng_state(),
        f"{RNG}{rank}.python": torch.tensor(words, dtype=torch.int64),
        f"{RNG}{rank}.gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states[f"{RNG}{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng(states: dict[str, Tensor], rank: int, device: torch.device) -> None:
    """Continue from saved states; what a checkpoint of another world size or device lacks is left as it is."""
    if (state := states.get(f"{RNG}{rank}.torch")) is not None:
        torch.set_rng_state(state)
    if (words := states.get(f"{RNG}{rank}.python")) is not None:
        gauss = states[f"{RNG}{rank}.gauss"].item()
        random.setstate((3, tuple(words.tolist()), None if math.isnan(gauss) else gauss))
    if device.type == "cuda" and (state := states.get(f"{RNG}{rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state, device)


def _moments_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state[parameter]
    if not state:
        fused = bool(optimizer.defaults.get("fused"))
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
