"""AdamW with decay on matrices only, and gradient clipping by global norm (report section 2.4)."""

from __future__ import annotations

from collections.abc import Iterable

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
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients in place so that their global `norm` is at most `max_norm`; 0 leaves them alone."""
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
