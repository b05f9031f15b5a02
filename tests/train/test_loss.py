import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from nano3.model.lm import LM
from nano3.parallel.context import SharedSequences
from nano3.train.loss import NextTokenLoss, Scale, check_shared
from nano3.train.world import Group, World


@pytest.fixture
def model(tiny):
    return LM(tiny.MODEL).init_weights(0)


def test_micro_batches_with_unequal_targets_add_up_to_the_mean_of_the_whole_batch(model, tiny):
    source = tiny.TinySource()
    whole = source.batch(0, 4)
    whole.targets[0, :11] = -100
    logits = model(whole.tokens, whole.document_ids)
    expected = cross_entropy(logits.flatten(0, 1), whole.targets.flatten())
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = tiny.TinyBatch(whole.tokens[rows], whole.targets[rows], whole.document_ids[rows], [])
        parts.append(NextTokenLoss(0.0)(model, part, Scale(whole.n_targets, 2)).total)
    assert sum(parts).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_balance_loss_enters_with_its_coefficient(model, tiny):
    batch = tiny.TinySource().batch(0, 2)
    plain = NextTokenLoss(0.0)(model, batch, Scale(batch.n_targets, 1))
    both = NextTokenLoss(0.5)(model, batch, Scale(batch.n_targets, 1))
    assert (both.total - plain.total).item() == pytest.approx(0.5 * plain.metrics["balance_loss"][0].item(), rel=1e-5)
    assert both.metrics["loss"] == plain.metrics["loss"]


def test_padding_is_in_no_load_and_each_type_of_balance_loss_is_its_own(model, tiny):
    batch = tiny.TinySource().batch(0, 2)
    valid = torch.arange(tiny.SEQ_LEN) < torch.tensor([[tiny.SEQ_LEN], [5]])
    batch = dataclasses.replace(batch, valid=valid, targets=batch.targets.masked_fill(~valid, -100))
    parts = [NextTokenLoss(0.5, kind)(model, batch, Scale(batch.n_targets, 1)) for kind in ("aux_loss", "seq_aux_loss")]
    for part, kind in zip(parts, ("balance_loss", "sequence_balance_loss"), strict=True):
        hidden = model.hidden(batch.tokens, batch.document_ids, valid=valid)
        assert part.loads.sum(1).tolist() == [(tiny.SEQ_LEN + 5) * 2] * 2
        assert part.metrics["balance_loss"][0].item() == pytest.approx(getattr(hidden, kind).item())
        nll, balance = (part.metrics[name][0] for name in ("loss", "balance_loss"))
        assert (part.total - nll).item() == pytest.approx(0.5 * balance.item(), rel=1e-4)
    assert parts[0].metrics["balance_loss"] != parts[1].metrics["balance_loss"]


def test_a_batch_without_targets_gives_zero(model, tiny):
    batch = tiny.TinySource().batch(0, 2)
    batch.targets.fill_(-100)
    loss = NextTokenLoss(0.0)(model, batch, Scale(0, 1))
    loss.total.backward()
    assert loss.metrics["loss"][0].item() == 0.0
    assert torch.count_nonzero(model.lm_head.weight.grad) == 0


class OfWholeSequences:
    """A loss that calls the model as if nothing lay before its batch."""

    shown = "loss"

    def __call__(self, model, batch, scale):
        raise AssertionError("no batch comes so far")


@pytest.fixture
def group():
    """A process group; of one, which is enough to tell it from others."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("loss", [OfWholeSequences(), NextTokenLoss(0.0)], ids=["of a stranger", "told of no slices"])
def test_a_loss_that_does_not_know_of_slices_is_given_none(loss, tiny, group, tmp_path):
    world = World(0, 2, groups={"context": Group(0, 2, group)})
    with pytest.raises(ValueError, match=rf"{type(loss).__name__} does not say that it takes slices of sequences"):
        tiny.trainer(tmp_path, loss=loss, world=world)
    told, other = SharedSequences(group), SharedSequences(dist.new_group())
    assert check_shared(knows := NextTokenLoss(0.0, shared=told), SharedSequences(group)) is knows
    assert check_shared(loss, None) is loss
    with pytest.raises(ValueError, match="does not say"):
        check_shared(NextTokenLoss(0.0, shared=other), told)
