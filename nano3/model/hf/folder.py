"""Hugging Face folders in and out: config.json and safetensors with the published `nemotron_h` names."""

from __future__ import annotations

from nano3.model.hf.config import read_config
from nano3.model.hf.names import named_tensors, published_name
from nano3.model.hf.read import check_stored, fill, load, stored_dtype, weight_bytes
from nano3.model.hf.write import save

__all__ = [
    "check_stored",
    "fill",
    "load",
    "named_tensors",
    "published_name",
    "read_config",
    "save",
    "stored_dtype",
    "weight_bytes",
]
