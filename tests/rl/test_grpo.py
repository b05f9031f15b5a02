"""The policy's loss on packed samples: values against the formula in full logits, masks, metrics, and the trainer."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.rl.batch import TrainingSample, fit_rows, pack_samples
from nano3.rl.grpo import GRPOLoss, Objective
from nano3.train.loss import Scale

TEMPERATURE = 0.8


def log_probs_of(model, ids, temperature=TEMPERATURE):
    """(T - 1,) of each token but the first, from full logits."""
    logits = model(torch.from_numpy(ids[None, :-1]).long())[0].double() / temperature
    return logits.log_softmax(-1).gather(1, torch.from_numpy(ids[1:, None]).long())[:, 0]


def sample(model, seed, length=12, prompt=4, advantage=1.0, gap=0.0, **changes):
    """Random tokens; the sampler's log-probabilities lie `gap` below the trainer's."""
    ids = np.random.default_rng(seed).integers(0, model.cfg.vocab_size, length)
    trained = np.arange(length) >= prompt
    with torch.no_grad():
        sampled = np.append(0.0, log_probs_of(model, ids).numpy()) - gap
    return TrainingSample(ids, trained, sampled.astype(np.float32), advantage, f"sample {seed}", **changes)


def step(model, loss, batches):
    """Total loss, gradients and summed metrics of one step over micro-batches."""
    model.zero_grad(set_to_none=True)
    scale = Scale(sum(batch.n_targets for batch in batches), len(batches))
    total, sums = 0.0, {}
    for batch in batches:
        parts = loss(model, batch, scale)
        parts.total.backward()
        total += float(parts.total.detach())
        for name, (value, count) in parts.metrics.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(value), before[1] + float(count))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total, gradients, {name: value / count for name, (value, count) in sums.items()}


def test_equals_the_formula_in_full_logits_however_it_is_packed(model):
    gaps = [0.0, math.log(1.5), -0.2]
    samples = [sample(model, i, 10 + 3 * i, 3 + i, (-1.0) ** i * (i + 1), gap) for i, gap in enumerate(gaps)]
    objective = Objective(temperature=TEMPERATURE)
    n = sum(int(s.trained.sum()) for s in samples)
    model.zero_grad(set_to_none=True)
    expected = sum(
        -(math.exp(gap) * s.advantage * (lp - lp.detach()).exp())[torch.from_numpy(s.trained[1:])].sum() / n
        for s, gap in zip(samples, gaps, strict=True)
        for lp in [log_probs_of(model, s.ids)]
    )
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    by_formula = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for length, rows in ((16, 1), (40, 1), (48, 4)):
        total, gradients, metrics = step(model, GRPOLoss(objective), pack_samples(samples, length, rows, pad_id=3))
        assert total == pytest.approx(expected.item(), rel=1e-4)
        assert gradients.keys() == by_formula.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, by_formula[name], rtol=1e-3, atol=2e-5)
        mean_gap = sum(abs(gap) * s.trained.sum() for gap, s in zip(gaps, samples, strict=True)) / n
        assert metrics["mismatch"] == pytest.approx(mean_gap, abs=1e-5)
        assert metrics["policy_loss"] == pytest.approx(expected.item(), rel=1e-4)
        assert metrics["masked_tokens"] == metrics["clipped_tokens"] == 0
        assert 0 < metrics["entropy"] < math.log(model.cfg.vocab_size) + 1e-3


def test_masked_tokens_have_no_gradient_and_stay_in_the_denominator(model):
    good, wrong = sample(model, 1, advantage=1.0), sample(model, 2, advantage=2.0, gap=math.log(6))
    loss = GRPOLoss(Objective(temperature=TEMPERATURE, sequence_threshold=0.0))
    alone, of_good, _ = step(model, loss, pack_samples([good], 24, 1))
    both, of_both, metrics = step(model, loss, pack_samples([good, wrong], 24, 1))
    assert both == pytest.approx(alone / 2, rel=1e-4)
    for name, gradient in of_both.items():
        torch.testing.assert_close(gradient, of_good[name] / 2, rtol=1e-3, atol=1e-6)
    assert metrics["masked_tokens"] == 0.5
    assert loss.take_largest_mismatch() == pytest.approx(math.log(6), abs=1e-4)
    assert loss.take_largest_mismatch() == 0.0


def test_a_sequence_beyond_the_threshold_is_masked_though_its_tokens_are_within_bounds(model):
    samples = [sample(model, 1), sample(model, 2, gap=math.log(2.5))]
    batches = pack_samples(samples, 24, 1)
    assert step(model, GRPOLoss(Objective(temperature=TEMPERATURE)), batches)[2]["masked_tokens"] == 0.5
    loose = Objective(temperature=TEMPERATURE, sequence_threshold=2.6)
    assert step(model, GRPOLoss(loose), batches)[2]["masked_tokens"] == 0


def test_a_truncated_sample_and_forced_tokens_train_nothing(model):
    truncated = replace(sample(model, 2), trained=np.zeros(12, bool))
    forced = sample(model, 3)
    forced.trained[6:9] = False
    forced.log_probs[6:9] = np.nan
    batches = pack_samples([truncated, forced], 11, 2)
    assert sum(batch.n_targets for batch in batches) == 5
    total, gradients, metrics = step(model, GRPOLoss(Objective(temperature=TEMPERATURE)), batches)
    assert math.isfinite(total)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert metrics["mismatch"] < 1e-5
    _, _, nothing = step(model, GRPOLoss(), pack_samples([sample(model, 2, advantage=0.0)], 16, 1))
    assert nothing["policy_loss"] == 0


def test_samples_without_gradient_are_left_out_and_stay_in_the_denominator(model):
    """Of a truncated one and one of a group with equal rewards nothing comes but the count of trained tokens."""
    truncated = replace(sample(model, 2), trained=np.zeros(12, bool))
    idle, good = sample(model, 3, advantage=0.0), [sample(model, 4), sample(model, 5, advantage=-0.5)]
    loss = GRPOLoss(Objective(temperature=TEMPERATURE))
    samples = [truncated, good[0], idle, good[1]]
    every, some = (pack_samples(samples, 11, 1, kl_coef=kl_coef) for kl_coef in (None, 0.0))
    assert [len(batches) for batches in (every, some)] == [4, 2]
    assert [sum(batch.n_targets for batch in batches) for batches in (every, some)] == [24, 24]
    assert [name for batch in some for name in batch.documents] == ["sample 4", "sample 5"]
    assert len(pack_samples(samples, 11, 1, kl_coef=0.1)) == 4
    (total, gradients, _), (total_some, of_some, _) = step(model, loss, every), step(model, loss, some)
    assert total_some == pytest.approx(total, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_some[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_step_has_tokens_where_no_sample_gives_a_gradient(model):
    idle = [sample(model, i, length, advantage=0.0) for i, length in enumerate((14, 12, 13))]
    [batch] = pack_samples(idle, 24, 1, kl_coef=0.0)
    assert (batch.documents, batch.n_tokens, batch.n_targets) == (["sample 1"], 11, 27)
    assert len(pack_samples(idle, 24, 1, micro_batches=2, kl_coef=0.0)) == 2
    assert pack_samples([], 24, 1, kl_coef=0.0) == []


def test_a_later_update_on_the_same_samples_is_clipped(model):
    samples = [sample(model, 1, advantage=1.0), sample(model, 2, advantage=-1.0)]
    [batch] = pack_samples(samples, 24, 1)
    before = batch.sampled - 1.0  # the policy made each token e times as probable meanwhile
    loose = Objective(temperature=TEMPERATURE, importance_low=0.0, sequence_threshold=0.0)
    _, gradients, metrics = step(model, GRPOLoss(loose), [replace(batch, before=before)])
    # Only of the good sample: of the bad one the probability has to come down again.
    assert metrics["clipped_tokens"] == 0.5
    assert metrics["mismatch"] == pytest.approx(1.0, abs=1e-5)
    [bad] = pack_samples(samples[1:], 24, 1)
    _, of_bad, _ = step(model, GRPOLoss(loose), [replace(bad, before=bad.sampled - 1.0)])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, of_bad[name] / 2, rtol=1e-3, atol=1e-6)


def test_the_divergence_from_a_reference(model):
    [batch] = pack_samples([sample(model, 1, advantage=0.0)], 16, 1)
    loss = GRPOLoss(Objective(temperature=TEMPERATURE, kl_coef=0.5))
    with pytest.raises(ValueError, match="reference"):
        step(model, loss, [batch])
    total, _, metrics = step(model, loss, [replace(batch, reference=batch.sampled + math.log(2))])
    assert metrics["kl"] == pytest.approx(1 - math.log(2), rel=1e-3)
    assert total == pytest.approx(0.5 * metrics["kl"], rel=1e-3)


def test_experts_are_replayed(model):
    experts = np.stack([np.random.default_rng(0).permutation(4)[:2] for _ in range(11)])[None].astype(np.uint8)
    batches = pack_samples([sample(model, 1, experts=experts)], 16, 1, micro_batches=2)
    assert [batch.n_tokens for batch in batches] == [11, 0]
    chosen = np.bincount(experts.ravel(), minlength=4)
    parts = [GRPOLoss()(model, batch, Scale(8, 1)) for batch in batches]
    assert parts[0].loads.tolist() == [chosen.tolist()]
    with pytest.raises(UserError, match="replay all or none"):
        pack_samples([sample(model, 1, experts=experts), sample(model, 2)], 24, 1)


def test_refuses_a_sample_that_does_not_fit(model):
    with pytest.raises(UserError, match="sample 1 has 12 tokens"):
        pack_samples([sample(model, 1)], 10, 1)


@given(st.lists(st.integers(1, 50), max_size=40))
@settings(deadline=None)
def test_every_sample_is_in_one_row_and_no_row_is_overfull(lengths):
    rows = fit_rows(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < load <= 50 for load in loads)
    assert sum(load <= 25 for load in loads) <= 1
