"""A selection put into a model without weights, so that its folder's files can be laid out."""

from __future__ import annotations

import torch

from nano3.config.model import ATTENTION
from nano3.model.hf.checkpoint import empty_scaled
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.moe import Experts
from nano3.quantize.policy import HEAD, Selection


def marked_model(selection: Selection, stage: str = "") -> LM:
    """The model on the meta device, its chosen matrices FP8 with scales, and scales of keys and values."""
    with torch.device("meta"):
        model = LM(selection.cfg)
        for matrix in selection.matrices:
            if matrix.name in selection.chosen:
                _mark(model, our_name(matrix.name))
        for block in selection.cached:
            for letter in "kv" if selection.cfg.pattern[block] == ATTENTION else ():
                projection = model.get_submodule(f"blocks.{block}.mixer.{letter}_proj")
                projection.register_buffer(f"{letter}_scale", torch.empty(()))
    model.stage = stage
    return model


def our_name(published: str) -> str:
    """nano3's name of a module."""
    return published if published == HEAD else published.replace("backbone.layers.", "blocks.", 1)


def _mark(model: LM, name: str) -> None:
    owner, leaf = name.rpartition(".")[::2]
    parent = model.get_submodule(owner)
    if isinstance(parent, Experts):
        parent.use_scaled(leaf, empty_scaled(parent.get_parameter(leaf), inputs=True))
        return
    module = model.get_submodule(name)
    assert isinstance(module, Linear)
    module.use_scaled(empty_scaled(module.weight, inputs=True))
