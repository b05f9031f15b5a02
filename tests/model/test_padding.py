"""Padding is no token: a padded batch trains as the same rows without padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from nano3.kernels import linear_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from nano3.model.forward_pass import STATISTICS, Pass, Places
from nano3.model.lm import LM
from nano3.model.router import RouterStats
from nano3.train.balance import update_biases

LENGTHS = [21, 7, 30]
PASSES = {"whole": (0, False), "recomputed": (0, True), "in pieces": (16, True), "rows together": (90, True)}


@pytest.fixture
def model(small_config):
    model = LM(small_config).init_weights(1).double().train()
    model.compute_dtype = torch.float64
    for i, bias in enumerate(model.expert_biases()):
        bias.copy_(torch.linspace(-0.1, 0.1, bias.numel()).roll(i))
    return model


def padded(lengths, width=40, behind=3):
    """Tokens, targets, document ids and mask of rows of two documents each, of `lengths`, padded with token 2."""
    generator = torch.Generator().manual_seed(0)
    tokens, valid = torch.full((len(lengths), width), 2), torch.zeros(len(lengths), width, dtype=torch.bool)
    targets, ids = torch.full_like(tokens, -100), torch.full_like(tokens, behind)
    for row, n in enumerate(lengths):
        text = torch.randint(3, 97, (n + 1,), generator=generator)
        tokens[row, :n], targets[row, :n], valid[row, :n] = text[:-1], text[1:], True
        ids[row, :n] = (torch.arange(n) >= n // 3).int()
    return tokens, targets, ids, valid


def train_once(model, batch, loss="balance_loss", chunk=0, recompute=False):
    """Loss, balance loss, loads, bias updates and gradients of one pass."""
    tokens, targets, ids, valid = batch
    model.sequence_chunk, model.checkpoint_activations = chunk, recompute
    model.zero_grad()
    hidden = model.hidden(tokens, ids, valid=valid)
    nll = linear_cross_entropy(hidden.x.flatten(0, 1), model.lm_head.weight, targets.flatten())
    balance = getattr(hidden, loss)
    (nll + 30 * balance).backward()
    biases = [torch.zeros_like(bias) for bias in model.expert_biases()]
    update_biases(biases, hidden.loads, 1.0)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"nll": nll.item(), "balance": balance.item()}, [hidden.loads, *biases], gradients


def same(result, expected):
    assert result[0] == pytest.approx(expected[0], rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(result[1], expected[1], strict=True))
    for name, gradient in expected[2].items():
        assert (result[2][name] - gradient).abs().max() <= 1e-9 * gradient.abs().max().clamp_min(1e-3), name


def row_alone(batch, row, n):
    return (*(m[row : row + 1, :n] for m in batch[:3]), None)


@pytest.mark.parametrize("way", PASSES)
def test_a_padded_row_trains_as_the_row_without_padding(model, way):
    batch = padded([21], width=64)
    same(train_once(model, batch, "balance_loss", *PASSES[way]), train_once(model, row_alone(batch, 0, 21)))


@pytest.mark.parametrize("way", PASSES)
def test_padded_rows_train_as_the_same_rows_one_after_the_other(model, way):
    batch = padded(LENGTHS)
    tokens, targets, ids, valid = batch
    numbers = ids + 10 * torch.arange(len(LENGTHS)).unsqueeze(1)
    joined = (*(m[valid].unsqueeze(0) for m in (tokens, targets, numbers)), None)
    same(train_once(model, batch, "balance_loss", *PASSES[way]), train_once(model, joined))


@pytest.mark.parametrize("way", PASSES)
def test_the_sequence_balance_loss_is_the_mean_of_the_rows_own(model, way):
    batch = padded([*LENGTHS, 0])
    result = train_once(model, batch, "sequence_balance_loss", *PASSES[way])
    alone = [row_alone(batch, row, n) for row, n in enumerate(LENGTHS)]
    rows = [train_once(model, row, "sequence_balance_loss") for row in alone]
    assert result[0]["balance"] == pytest.approx(sum(row[0]["balance"] for row in rows) / 3, rel=1e-9)
    assert abs(result[0]["balance"] - train_once(model, batch)[0]["balance"]) > 1e-3
    assert torch.equal(result[1][0], torch.stack([row[1][0] for row in rows]).sum(0))
    gate = "blocks.1.mixer.gate.weight"
    of_batch = train_once(model, batch)[2][gate]
    assert (result[2][gate] - of_batch).abs().max() > 1e-3 * of_batch.abs().max()


def test_sequence_gradients_in_pieces_are_those_of_the_whole_pass(model):
    batch = padded([*LENGTHS, 0])
    whole = train_once(model, batch, "sequence_balance_loss")
    for chunk in (16, 90):
        same(train_once(model, batch, "sequence_balance_loss", chunk, True), whole)


@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize("loss", ["balance_loss", "sequence_balance_loss"])
def test_a_batch_of_padding_alone_counts_nothing_and_gives_every_weight_a_gradient(model, way, loss):
    """Under sharding, a weight without a gradient would leave the other ranks waiting."""
    values, (loads, *_), gradients = train_once(model, padded([0, 0]), loss, *PASSES[way])
    assert values == {"nll": 0.0, "balance": 0.0}
    assert not loads.any()
    assert all(not gradient.any() for gradient in gradients.values())


class Ops(TorchDispatchMode):
    """Names of the operations of a pass, with the sizes of their results."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append((function.overloadpacket.__name__, tuple(getattr(result, "shape", ()))))
        return result

    def count(self, name, *shape):
        return sum(op == name and (not shape or size == shape) for op, size in self.seen)


def test_the_tokens_of_a_row_are_packed_and_spread_out_once(model):
    """Not once for the routed experts and again for the shared one."""
    tokens, _, ids, valid = padded(LENGTHS)
    block, x = model.blocks[1], model.embeddings(tokens)
    with Ops() as ops:
        block(x, Pass(ids, Places.of(valid)))
    assert ops.count("index_select", sum(LENGTHS), x.shape[-1]) == 1
    assert ops.count("index_copy", tokens.numel(), x.shape[-1]) == 1


@pytest.mark.parametrize("chunk", [16, 90])
def test_padding_is_looked_for_once_for_all_blocks_and_pieces(small_config, chunk):
    """Each look makes the CPU wait for a GPU."""
    model = LM(dataclasses.replace(small_config, pattern="EE")).init_weights(1)
    tokens, _, ids, valid = padded(LENGTHS)
    model.sequence_chunk = chunk
    with Ops() as ops:
        model.hidden(tokens, ids, valid=valid).x.sum().backward()
    assert ops.count("nonzero") == 1


def counted(model, wanted):
    """Sums over the choices of a pass in pieces, some of which may be the experts' own; and its result."""
    with Ops() as ops, torch.no_grad():
        hidden = model.hidden(padded([60], 64)[0], statistics=wanted)
    return ops.count("scatter_add_"), hidden


@pytest.mark.parametrize(("wanted", "more"), [(("loads", "balance_loss"), 8), (STATISTICS, 16)])
def test_a_pass_in_pieces_counts_what_is_going_to_be_read(small_config, wanted, more):
    model = LM(dataclasses.replace(small_config, pattern="EE")).init_weights(1)
    model.sequence_chunk = 16
    (least, bare), (all_, hidden) = counted(model, ()), counted(model, wanted)
    assert all_ - least == more
    for name in STATISTICS:
        if name in wanted:
            getattr(hidden, name)
        with pytest.raises(ValueError, match=f"{name}: the pass was not asked for it"):
            getattr(bare, name)


def test_moe_output_at_padding_is_zero(model):
    tokens, _, ids, valid = padded(LENGTHS)
    outputs = []
    handle = model.blocks[1].mixer.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    model.hidden(tokens, ids, valid=valid)
    handle.remove()
    assert not outputs[0][~valid].any()
    assert (outputs[0][valid] != 0).any(-1).all()


@pytest.mark.parametrize("loss", ["balance_loss", "sequence_balance_loss"])
def test_scores_that_underflow_give_no_nan(loss):
    scores = torch.sigmoid(torch.full((6, 4), -110.0, requires_grad=True))
    assert not scores.any()
    value = getattr(RouterStats(scores, torch.zeros(6, 2, dtype=torch.int64), (2, 3)), loss)
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("valid", [torch.ones(1, 4), torch.ones(4, dtype=torch.bool)])
def test_a_mask_of_another_type_or_shape_is_refused(model, valid):
    with pytest.raises(ValueError, match=r"valid is .* it must be bool \(1, 4\)"):
        model.hidden(torch.ones(1, 4, dtype=torch.int64), valid=valid)
