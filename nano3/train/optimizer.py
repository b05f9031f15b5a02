"""AdamW with decay on matrices only, and gradient clipping by global norm (report section 2.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nano3.config.schema import OptimizerConfig


def build_optimizer(model: nn.Module, cfg: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; call it after the model was parallelised.

    Matrices and embeddings decay; norms, biases, A_log, dt_bias and D (all one-dimensional) do not.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trainable)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=0.0, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=fused
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for every parameter from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters that `optimizer` updates."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Global 2-norm of all gradients, over all shards: an ordinary scalar tensor."""
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in _by_mesh(parameters)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if len(whole) == 1:
        return whole[0]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())


def clip_gradients(parameters: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients in place so that their global `norm` is at most `max_norm`; 0 leaves them alone."""
    if max_norm > 0:
        for group in _by_mesh(parameters):
            nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def _by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters that have a gradient, those whose gradients are sharded over the same processes together."""
    groups: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            groups.setdefault(mesh, []).append(parameter)
    return list(groups.values())
