"""Conversations packed into rows train as each of them alone."""

import numpy as np
import pytest
import torch

from nano3.data.chat.packing import packed_row
from nano3.data.chat.rows import EncodedRow, Rows, RowWriter
from nano3.data.tokens.batch import stack
from nano3.model.lm import LM
from nano3.train.loss import NextTokenLoss, Scale

LENGTHS = [9, 30, 5, 17, 24]


@pytest.fixture
def model(small_config):
    model = LM(small_config).init_weights(1).double().train()
    model.compute_dtype = torch.float64
    for i, bias in enumerate(model.expert_biases()):
        bias.copy_(torch.linspace(-0.1, 0.1, bias.numel()).roll(i))
    return model


@pytest.fixture
def rows(tmp_path):
    """Rows of two trained stretches each, as a conversation with a tool call has."""
    rng = np.random.default_rng(3)
    writer = RowWriter(tmp_path)
    for i, n in enumerate(LENGTHS):
        trained = np.zeros(n, bool)
        trained[n // 3 : n // 2] = trained[-2:] = True
        writer.add(EncodedRow("x", i, 0, rng.integers(3, 97, n).astype(np.uint32), trained, i))
    writer.close()
    return Rows(tmp_path)


def train_once(model, batches):
    """Loss, expert loads and gradients of a step of these micro-batches."""
    model.zero_grad()
    scale = Scale(sum(batch.n_targets for batch in batches), len(batches))
    parts = [NextTokenLoss(0.0)(model, batch, scale) for batch in batches]
    total = sum(part.total for part in parts)
    total.backward()
    loads = sum(part.loads for part in parts)
    return total.item(), loads, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("length", [48, 96])
def test_loss_and_gradients_of_packed_rows_are_those_of_the_rows_alone(model, rows, length):
    alone = [stack([packed_row([rows], [(0, i)], n - 1, 0)]) for i, n in enumerate(LENGTHS)]
    sequences = [[(0, 1), (0, 3)], [(0, 4), (0, 0), (0, 2)]] if length == 48 else [[(0, i) for i in (4, 2, 0, 3, 1)]]
    packed = stack([packed_row([rows], members, length, 0) for members in sequences])
    assert packed.valid is not None
    assert packed.n_tokens == sum(LENGTHS) - len(LENGTHS)
    loss, loads, gradients = train_once(model, [packed])
    expected, their_loads, theirs = train_once(model, alone)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert torch.equal(loads, their_loads)
    for name, gradient in theirs.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-9 * gradient.abs().max().clamp_min(1e-3), name
