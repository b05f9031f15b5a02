"""Names of a model's tensors: nano3's own, and the published ones of `nemotron_h` checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from nano3.model.lm import LM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def named_tensors(model: LM) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that a checkpoint holds, by nano3's names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def published_name(name: str, expert: int | None = None) -> str:
    """nano3's name of a tensor -> the published name; `expert` picks one expert of a stacked tensor."""
    if name.startswith("blocks."):
        name = "backbone.layers." + name.removeprefix("blocks.")
    elif not name.startswith("lm_head."):
        name = "backbone." + name
    if expert is None:
        return name
    stem, projection = name.rsplit(".", 1)
    return f"{stem}.{expert}.{projection}.weight"


def is_stacked(name: str) -> bool:
    """Whether a tensor holds all experts of a block, which published checkpoints keep apart."""
    return name.endswith((".experts.up_proj", ".experts.down_proj"))
