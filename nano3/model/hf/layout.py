"""Names of the files that hold the weights in a folder."""

from __future__ import annotations

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GGUF_LINK = "weights.gguf.json"
"""In a folder that stands for a GGUF file: names the file (nano3.model.gguf.folder)."""
