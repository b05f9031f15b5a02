"""One way in for every verb: a run folder, a Hugging Face folder or hub id, an adapter's, or a model preset."""

from __future__ import annotations

from pathlib import Path

import torch

from nano3.config.presets import load_model as load_model_config
from nano3.model.find import check_named, is_adapter_folder, local_model, model_folder
from nano3.model.hf.folder import load
from nano3.model.hf.read import allocate
from nano3.model.lm import LM
from nano3.model.lora.folder import load_adapter


def load_model(path_or_preset: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> LM:
    """As `nano3.load`."""
    name = local_model(path_or_preset)
    if Path(name).exists():
        model = load(model_folder(name), dtype, device)
        if is_adapter_folder(name):
            load_adapter(model, name)
        return model
    check_named(name)
    with torch.device("meta"):
        model = LM(load_model_config(name))
    # Drawn one parameter at a time: all of them in float32 would take twice the memory of bfloat16 weights.
    allocate(model, dtype or torch.float32, device)
    model.compute_dtype = dtype or torch.float32
    return model.init_weights(seed=0).eval()
