"""One way in for every verb: a run folder, a Hugging Face folder, or a model preset."""

from __future__ import annotations

from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.config.presets import load_model as load_model_config
from nano3.config.presets import preset_names
from nano3.model.hf import load
from nano3.model.hf_read import allocate
from nano3.model.lm import LM


def model_folder(path: str | Path) -> Path:
    """The Hugging Face folder behind a run folder (its `model/`) or the folder itself.

    Raises:
        UserError: neither is there.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a run folder or a Hugging Face folder")
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"{path}: no config.json here or in model/; give a run folder or a Hugging Face folder")


def load_model(path_or_preset: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> LM:
    """As `nano3.load`."""
    name = str(path_or_preset)
    if Path(name).exists():
        return load(model_folder(name), dtype, device)
    presets = preset_names("models")
    if name not in presets:
        raise UserError(f"{name}: no such folder, and no model preset of that name (presets: {', '.join(presets)})")
    with torch.device("meta"):
        model = LM(load_model_config(name))
    # Drawn one parameter at a time: all of them in float32 would take twice the memory of bfloat16 weights.
    allocate(model, dtype or torch.float32, device)
    model.compute_dtype = dtype or torch.float32
    return model.init_weights(seed=0).eval()
