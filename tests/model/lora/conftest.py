from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nano3.config.lora import LoraConfig
from nano3.model.lm import LM
from nano3.model.lora.apply import adapted, apply_lora

CFG = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture
def tokens() -> Tensor:
    """(2, 40)."""
    return torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def filled() -> Callable[..., LM]:
    """Gives a model adapters that change what it computes."""

    def fill(model: LM, cfg: LoraConfig = CFG) -> LM:
        apply_lora(model, cfg)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, module in adapted(model):
                for adapter in module.adapters():
                    adapter.B.normal_(0, 0.2, generator=generator)
        return model

    return fill
