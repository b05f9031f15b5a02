"""Sequences shared out among ranks: the same numbers as on one process, wherever documents begin."""

from __future__ import annotations

import pytest

from .conftest import same_run

BALANCED = {"balance": {"loss_coef": 0.1, "bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
SHARED = {**BALANCED, "parallel": {"context": 2}}
IN_PIECES = {"checkpoint_activations": "block", "sequence_chunk": 8}
SEQUENCE = {"balance": {**BALANCED["balance"], "loss_type": "seq_aux_loss"}}


@pytest.mark.parametrize(
    "train",
    [{}, *(pytest.param(more, marks=pytest.mark.slow) for more in ({"checkpoint_activations": "block"}, IN_PIECES))],
    ids=["whole", "recomputed", "pieces of slices"],
)
def test_two_ranks_that_share_sequences_train_as_one(finish, train):
    same_run(finish("two", ranks=2, **SHARED, train=train), finish("one", **BALANCED))


@pytest.mark.slow
@pytest.mark.parametrize("balance", [BALANCED, SEQUENCE], ids=["batch", "rows"])
def test_rows_of_different_lengths_with_padding_behind_them(finish, balance):
    settings = {**BALANCED, **balance}
    run = finish("two", "--source", "ragged", ranks=2, **settings, parallel={"context": 2})
    same_run(run, finish("one", "--source", "ragged", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"context": 2, "expert": 2}, {"context": 2, "fsdp": False}], ids=str)
def test_two_ranks_that_share_sequences_and_experts(finish, parallel):
    same_run(finish("two", ranks=2, **BALANCED, parallel=parallel), finish("one", **BALANCED))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"context": 2, "expert": 2}, {"context": 2, "expert": 4}], ids=str)
def test_four_ranks_share_data_sequences_and_experts(finish, parallel):
    train = {"train": {"micro_batch_size": 1}}
    same_run(finish("four", ranks=4, **BALANCED, **train, parallel=parallel), finish("one", **BALANCED, **train))
