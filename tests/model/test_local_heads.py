"""A block that holds the weights of some heads computes those heads, whatever the model's configuration says."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import pytest
import torch

from nano3.model.attention import Attention
from nano3.model.chunked.block import run_in_pieces
from nano3.model.forward_pass import Pass
from nano3.model.init import init_weights
from nano3.model.lm import LM
from nano3.model.mamba2 import Mamba2


@pytest.fixture
def mixers(small_config):
    """Attention of 4 heads over 2 of keys, and Mamba-2 of 6 heads in 2 groups."""
    model = LM(dataclasses.replace(small_config, pattern="*M")).double()
    init_weights(model, model.cfg, 1)
    attention, mamba = cast(list[Any], [block.mixer for block in model.blocks])
    torch.nn.init.normal_(mamba.norm.weight)
    return attention, mamba


def keep(module, **rows):
    """Only these rows of a module's parameters, (name of the parameter, rows, dimension 0 unless `columns`)."""
    for name, places in rows.items():
        owner, leaf = module, name
        if "__" in name:
            child, leaf = name.split("__")
            owner = getattr(module, child)
        setattr(owner, leaf, torch.nn.Parameter(getattr(owner, leaf)[places].clone()))


def half_attention(whole: Attention, half: int) -> Attention:
    part = copy.deepcopy(whole)
    q, kv = slice(16 * half, 16 * half + 16), slice(8 * half, 8 * half + 8)
    keep(part, q_proj__weight=q, k_proj__weight=kv, v_proj__weight=kv)
    part.o_proj.weight = torch.nn.Parameter(whole.o_proj.weight[:, q].clone())
    return part


def half_mamba(whole: Mamba2, half: int) -> Mamba2:
    """Three of the six heads and their group: inner width 24 of 48, states 12 of 24."""
    part = copy.deepcopy(whole)
    inner, heads, states = (torch.arange(n * half, n * half + n) for n in (24, 3, 12))
    conv = torch.cat([inner, 48 + states, 48 + 24 + states])
    keep(part, in_proj__weight=torch.cat([inner, 48 + conv, 48 + 96 + heads]), conv1d__weight=conv, conv1d__bias=conv)
    keep(part, A_log=heads, D=heads, dt_bias=heads, norm__weight=inner)
    part.out_proj.weight = torch.nn.Parameter(whole.out_proj.weight[:, inner].clone())
    return part


def run(mixer, x, chunk):
    """Through the mixer, or in pieces through a block of it without a norm."""
    ids = (torch.arange(x.shape[1]) >= 17).int().expand(2, -1)
    if not chunk:
        return mixer(x, Pass(ids), None)[0]
    block: Any = torch.nn.Module()
    block.norm, block.mixer = torch.nn.Identity(), mixer
    return run_in_pieces(block, x, Pass(ids), chunk)[0] - x


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize(("place", "half_of"), [(0, half_attention), (1, half_mamba)], ids=["attention", "mamba"])
def test_halves_of_the_heads_add_up_to_the_whole(mixers, place, half_of, chunk):
    whole, x = mixers[place], torch.randn(2, 40, 32, dtype=torch.float64)
    parts = [run(half_of(whole, half), x, chunk) for half in (0, 1)]
    assert min(part.abs().max() for part in parts) > 1e-6
    torch.testing.assert_close(parts[0] + parts[1], run(whole, x, chunk), rtol=1e-9, atol=1e-12)
