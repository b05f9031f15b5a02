"""Names of a model's tensors: nano3's own, and the published ones of `nemotron_h` checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from nano3.model.lm import LM

A, B = "lora_A", "lora_B"
"""What the names of an adapter's two matrices end with (nano3.model.lora)."""


def named_tensors(model: LM) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that a model's folder holds, by nano3's names: all but those of adapters."""
    yield from ((name, parameter) for name, parameter in model.named_parameters() if not is_adapter(name))
    yield from model.named_buffers()


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's two matrices."""
    return name.endswith((A, B))


def published_name(name: str, expert: int | None = None) -> str:
    """nano3's name of a tensor or module -> the published name; `expert` picks one expert of a stacked tensor."""
    if name.startswith("blocks."):
        name = "backbone.layers." + name.removeprefix("blocks.")
    elif name.partition(".")[0] != "lm_head":
        name = "backbone." + name
    if expert is None:
        return name
    stem, leaf = name.rsplit(".", 1)
    projection, kind = next((leaf.removesuffix(end), kind) for end, kind in _LEAVES.items() if leaf.endswith(end))
    return f"{stem}.{expert}.{projection}.{kind}"


# What nano3's names of stacked tensors end with behind the projection -> an expert's own tensor.
_LEAVES = {"_input_scale": "input_scale", "_scale": "weight_scale", "": "weight"}
_STACKED = tuple(f".experts.{projection}_proj{end}" for projection in ("up", "down") for end in _LEAVES)


def is_stacked(name: str) -> bool:
    """Whether a tensor holds all experts of a block, which published checkpoints keep apart."""
    return name.endswith(_STACKED)
