"""Hugging Face folders in and out: config.json and safetensors with the published `nemotron_h` names."""

from __future__ import annotations

from nano3.model.config import read_config
from nano3.model.hf_names import named_tensors, published_name
from nano3.model.hf_read import check_stored, fill, load, stored_dtype, weight_bytes
from nano3.model.hf_write import save

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
