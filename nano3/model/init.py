"""Initial weights (report section 2.1 and its public recipe)."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.model.shards import local_part

# Projections that write to the residual stream.
RESIDUAL_WRITERS = ("out_proj.weight", "o_proj.weight", "down_proj.weight", "experts.down_proj")


def init_weights(model: nn.Module, cfg: ModelConfig, seed: int) -> None:
    """Fill every parameter in place; buffers of the router start at zero.

    Of a sharded parameter each rank keeps its slice of what one process would draw; one whole parameter at a time is
    in memory.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = initial_values(name, parameter.shape, cfg, seed)
            local, where = local_part(parameter)
            local.copy_(values[where])
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()


def initial_values(name: str, shape: torch.Size, cfg: ModelConfig, seed: int) -> Tensor:
    """One parameter's, float32."""
    return _draw(name, torch.empty(shape), cfg, generator_of(name, seed))


def generator_of(name: str, seed: int) -> torch.Generator:
    """A stream of its own for each name: sharding or a changed pattern does not move other parameters."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF))


def deviation(name: str, cfg: ModelConfig) -> float:
    """Standard deviation of a matrix's initial weights."""
    rescaled = cfg.rescale_prenorm_residual and name.endswith(RESIDUAL_WRITERS)
    return cfg.init_std / math.sqrt(cfg.n_blocks) if rescaled else cfg.init_std


def _draw(name: str, out: Tensor, cfg: ModelConfig, generator: torch.Generator) -> Tensor:
    if name.endswith(("norm.weight", "norm_f.weight", ".D")):
        return out.fill_(1.0)
    if name.endswith(".dt_bias"):
        return _inverse_softplus(_log_uniform_dt(out, cfg, generator))
    if name.endswith(".A_log"):
        return out.uniform_(1.0, 16.0, generator=generator).log_()
    if ".conv1d." in name:
        bound = 1.0 / math.sqrt(cfg.d_conv)  # PyTorch's default for a depthwise conv: fan-in is its width
        return out.uniform_(-bound, bound, generator=generator)
    out.normal_(0.0, cfg.init_std, generator=generator)
    if cfg.rescale_prenorm_residual and name.endswith(RESIDUAL_WRITERS):
        out.div_(math.sqrt(cfg.n_blocks))
    return out


def _log_uniform_dt(out: Tensor, cfg: ModelConfig, generator: torch.Generator) -> Tensor:
    low, high = math.log(cfg.dt_min), math.log(cfg.dt_max)
    return out.uniform_(low, high, generator=generator).exp_().clamp_(min=cfg.dt_floor)


def _inverse_softplus(dt: Tensor) -> Tensor:
    return dt + torch.log(-torch.expm1(-dt))
