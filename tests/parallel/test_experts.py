"""Experts divided among ranks: the same numbers as on one process, whoever has how many tokens."""

from __future__ import annotations

import pytest
import torch

from nano3.parallel.experts import copies

from .conftest import same_run

BALANCED = {"balance": {"loss_coef": 0.1, "bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
DIVIDED = {**BALANCED, "parallel": {"expert": 2}}
IN_PIECES = {"checkpoint_activations": "block", "sequence_chunk": 8}


@pytest.mark.parametrize(
    "train", [{}, pytest.param({"checkpoint_activations": "block"}, marks=pytest.mark.slow)], ids=["kept", "recomputed"]
)
def test_two_ranks_that_divide_the_experts_train_as_one(finish, train):
    same_run(finish("two", ranks=2, **DIVIDED, train=train), finish("one", **BALANCED))


@pytest.mark.parametrize(
    "train", [{}, pytest.param(IN_PIECES, marks=pytest.mark.slow)], ids=["whole", "pieces of sequences"]
)
def test_all_tokens_choose_the_experts_of_one_rank(finish, train):
    run = finish("two", "--crowd", ranks=2, **DIVIDED, train=train)
    assert {tuple(share > 0 for share in block) for block in run.metrics[-2]["shares"]} == {(True, True, False, False)}
    same_run(run, finish("one", "--crowd", **BALANCED))


@pytest.mark.slow
def test_a_rank_has_padding_alone(finish):
    train = {"micro_batch_size": 1, "batch_size": 2, "tokens": 96}
    run = finish("two", "--source", "padded", ranks=2, **DIVIDED, train=train)
    same_run(run, finish("one", "--source", "padded", **BALANCED, train=train))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"expert": 2}, {"expert": 4}, {"expert": 2, "replicate": 2}], ids=str)
def test_four_ranks_shard_experts_that_they_divide(finish, parallel):
    train = {"train": {"micro_batch_size": 1}}
    run = finish("four", ranks=4, **BALANCED, **train, parallel=parallel)
    same_run(run, finish("one", **BALANCED, **train))


@pytest.mark.slow
def test_all_tokens_choose_one_rank_of_two_pairs(finish):
    train = {"train": {"micro_batch_size": 1}}
    run = finish("four", "--crowd", ranks=4, **DIVIDED, **train)
    same_run(run, finish("one", "--crowd", **BALANCED, **train))


def test_gradients_of_a_tokens_copies_are_added_in_float32():
    x = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    order = torch.tensor([5, 0, 1, 7, 2, 3, 4, 6])
    rows = copies(x, order, 4)
    assert rows.shape == (8, 1)
    # In bfloat16 256 + 1 is 256, however often it is added.
    by_place = torch.tensor([256.0, 1, 1, 1, 2, -3, 4, 5])
    rows.backward(by_place[order].bfloat16().unsqueeze(1))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [torch.tensor(259.0).bfloat16().item(), 8]


@pytest.mark.slow
def test_two_ranks_that_divide_the_experts_train_in_bfloat16(finish):
    train = {"train": {"dtype": "bfloat16"}}
    run, alone = finish("two", ranks=2, **DIVIDED, **train), finish("one", **BALANCED, **train)
    assert len(run.metrics) == len(alone.metrics) > 6
    for here, there in zip(run.metrics, alone.metrics, strict=True):
        for key in {"loss", "grad_norm"} & there.keys():
            assert here[key] == pytest.approx(there[key], rel=0.02), (here["step"], key)
    first, other = (torch.cat([g.flatten() for g in r.gradients(1).values()]) for r in (run, alone))
    assert (first - other).norm() <= 0.05 * other.norm(), (first - other).norm() / other.norm()
