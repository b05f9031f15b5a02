"""A model with random weights that the device draws: billions of them take a processor minutes."""

from __future__ import annotations

import torch

from nano3.bench.workload import SEED
from nano3.config.model import ModelConfig
from nano3.model.init import deviation, initial_values
from nano3.model.lm import LM


@torch.no_grad()
def random_model(cfg: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> LM:
    """Weights of the sizes that initial ones have, never held in another type than `dtype`; those of matrices are other
    numbers than `LM.init_weights` draws."""
    with torch.device("meta"):
        model = LM(cfg).to_dtype(dtype).eval()
    model.to_empty(device=device)
    torch.manual_seed(SEED)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and ".conv1d." not in name:
            weight.normal_(0, deviation(name, cfg))
        else:
            weight.copy_(initial_values(name, weight.shape, cfg, SEED))
    for buffer in model.buffers():
        buffer.zero_()
    return model
