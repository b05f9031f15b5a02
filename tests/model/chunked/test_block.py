"""A block's pass in pieces computes what the whole pass computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nano3.kernels import linear_cross_entropy

from nano3.config.model import ModelConfig
from nano3.model.lm import LM

CFG = ModelConfig(
    pattern="ME*-ME*", vocab_size=64, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, mamba_n_heads=4,
    mamba_head_dim=8, d_state=8, n_groups=2, chunk_size=16, n_experts=4, top_k=2, d_expert=16, d_shared=16, d_ff=32,
)  # fmt: skip


def make(dtype):
    model = LM(CFG).init_weights(3).train()
    for bias in model.expert_biases():
        bias.copy_(torch.linspace(-0.1, 0.1, len(bias)))
    model.to_dtype(dtype) if dtype == torch.float32 else model.double()
    model.compute_dtype = dtype
    return model


def documents(rows, T, borders):
    """(rows, T) ids: row r starts documents at the places borders[r]."""
    ids = torch.zeros(rows, T, dtype=torch.int32)
    for row, places in enumerate(borders):
        for place in places:
            ids[row, place:] += 1
    return ids


def train_once(model, tokens, ids, chunk, recompute=True):
    """Loss, balance loss, loads and all gradients of one pass and its backward pass."""
    model.sequence_chunk, model.checkpoint_activations = chunk, recompute
    model.zero_grad()
    hidden = model.hidden(tokens, ids)
    targets = tokens.roll(-1, 1).flatten()
    loss = linear_cross_entropy(hidden.x.flatten(0, 1), model.lm_head.weight, targets)
    (loss + hidden.balance_loss).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss.item(), hidden.balance_loss.item(), hidden.loads, gradients


def same(whole, pieces, tolerance):
    assert pieces[0] == pytest.approx(whole[0], rel=tolerance)
    assert pieces[1] == pytest.approx(whole[1], rel=tolerance)
    assert torch.equal(pieces[2], whole[2])
    for name, gradient in whole[3].items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (pieces[3][name] - gradient).abs().max() <= tolerance * scale, name


PACKINGS = {
    "one document": None,
    "borders inside, at and around the pieces' own": [[5, 16, 17, 31, 70], [32, 33, 48]],
    "documents over several pieces": [[40], [3, 89]],
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("chunk", [16, 50])
def test_loss_loads_and_gradients_are_those_of_the_whole_pass(packing, chunk):
    model = make(torch.float64)
    tokens = torch.randint(0, 64, (2, 90), generator=torch.Generator().manual_seed(0))
    ids = None if PACKINGS[packing] is None else documents(2, 90, PACKINGS[packing])
    whole = train_once(model, tokens, ids, 0, recompute=False)
    same(whole, train_once(model, tokens, ids, chunk), 1e-9)


@pytest.mark.parametrize("chunk", [1, 2])
def test_pieces_may_be_shorter_than_the_convolution(chunk):
    model = make(torch.float64)
    tokens = torch.randint(0, 64, (1, 9), generator=torch.Generator().manual_seed(5))
    ids = documents(1, 9, [[4, 5]])
    same(train_once(model, tokens, ids, 0, recompute=False), train_once(model, tokens, ids, chunk), 1e-9)


@pytest.mark.parametrize("chunk", [64, 100])
def test_the_fast_kernels_agree_to_rounding(chunk):
    model = make(torch.float32)
    tokens = torch.randint(0, 64, (1, 300), generator=torch.Generator().manual_seed(1))
    ids = documents(1, 300, [[64, 130, 290]])
    same(train_once(model, tokens, ids, 0, recompute=False), train_once(model, tokens, ids, chunk), 2e-4)


def test_short_rows_are_taken_together():
    model = make(torch.float64)
    tokens = torch.randint(0, 64, (7, 20), generator=torch.Generator().manual_seed(2))
    ids = documents(7, 20, [[3], [], [10, 11], [], [], [], [19]])
    same(train_once(model, tokens, ids, 0, recompute=False), train_once(model, tokens, ids, 45), 1e-9)


def test_pieces_see_what_came_before_and_documents_do_not():
    model = make(torch.float64).eval()
    model.sequence_chunk = 16
    tokens = torch.randint(0, 64, (1, 64), generator=torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % 64
    one, two = (model.hidden(t, documents(1, 64, [[48]])).x for t in (tokens, other))
    assert (one[0, 40] - two[0, 40]).abs().max() > 1e-9
    assert torch.equal(one[0, 48:], two[0, 48:])


@pytest.mark.slow
def test_a_sequence_of_64k_tokens_of_the_tiny_preset_fits_in_4_gb():
    command = [str(Path(__file__).parents[1] / "long_sequence.py"), "65536", "--checkpoint", "--sequence-chunk", "4096"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, env=os.environ)
    facts = json.loads(done.stdout)
    assert facts["loss"] > 0
    assert facts["peak_bytes"] < 4e9
