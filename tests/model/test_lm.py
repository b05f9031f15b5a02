"""The model alone: documents, inference state, routing statistics, initial values."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.model.lm import LM


def draw(shape: tuple[int, ...], vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_packed_documents_equal_the_same_documents_alone(small_model):
    lengths = [7, 1, 16, 1, 1, 21, 3]
    tokens = draw((1, sum(lengths)), 97)
    ids = torch.repeat_interleave(torch.tensor([4, 9, 4, 2, 8, 0, 1]), torch.tensor(lengths))[None]
    packed = small_model(tokens, ids)
    alone = torch.cat([small_model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_rows_of_a_batch_do_not_see_each_other(small_model):
    tokens = draw((3, 33), 97)
    together = small_model(tokens)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], small_model(tokens[row : row + 1]), atol=2e-5, rtol=1e-4)


def test_the_future_does_not_change_the_past(small_model):
    tokens = draw((1, 40), 97)
    changed = tokens.clone()
    changed[0, 25] = (changed[0, 25] + 1) % 97
    before, after = small_model(tokens), small_model(changed)
    torch.testing.assert_close(before[:, :25], after[:, :25], atol=1e-6, rtol=0)
    assert (before[:, 25] - after[:, 25]).abs().max() > 1e-3


@pytest.mark.parametrize("parts", [[45], [1] * 45, [30] + [1] * 15, [3, 2, 1, 17, 1, 16, 5], [44, 1]])
def test_prefill_and_steps_equal_the_full_forward(small_model, parts):
    tokens = draw((2, 45), 97)
    state = small_model.new_state(2, capacity=4)
    pieces = [small_model(part, state=state) for part in tokens.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), small_model(tokens), atol=5e-5, rtol=1e-3)


def test_document_ids_and_state_together_are_refused(small_model):
    tokens = draw((1, 4), 97)
    with pytest.raises(ValueError, match="document_ids or state"):
        small_model(tokens, torch.zeros_like(tokens), small_model.new_state(1))


def test_loads_count_every_choice_once(small_model):
    hidden = small_model.hidden(draw((2, 50), 97))
    assert hidden.loads.shape == (2, 5)
    assert hidden.loads.sum(1).tolist() == [2 * 50 * 2] * 2


def test_recompute_counts_loads_once_and_keeps_gradients(small_config):
    tokens, results = draw((2, 30), 97), []
    for recompute in (False, True):
        model = LM(small_config).init_weights(1).train()
        model.checkpoint_activations = recompute
        hidden = model.hidden(tokens)
        (hidden.x.square().mean() + hidden.balance_loss).backward()
        results.append((hidden.loads, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, msg=name)


def test_balance_loss_is_one_a_block_when_routing_is_even(small_config):
    model = LM(dataclasses.replace(small_config, pattern="EE", top_k=5)).init_weights(0)
    for block in model.blocks:
        block.mixer.gate.weight.data.zero_()
    assert model.hidden(draw((1, 40), 97)).balance_loss.item() == pytest.approx(2.0)


def test_bias_steers_the_choice_but_not_the_weights(small_config):
    model = LM(dataclasses.replace(small_config, pattern="E")).init_weights(0)
    gate = model.blocks[0].mixer.gate
    x = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    gate.e_score_correction_bias.copy_(torch.tensor([9.0, -9, -9, -9, 8]))
    routing = gate(x)
    assert set(routing.expert_ids.unique().tolist()) == {0, 4}
    scores = torch.sigmoid(x @ gate.weight.T)[:, [0, 4]]
    expected = 2.5 * scores / scores.sum(1, keepdim=True)
    order = routing.expert_ids.argsort(1)
    torch.testing.assert_close(routing.weights.gather(1, order), expected)


def test_log_probs_equal_log_softmax_of_the_logits(small_model):
    """At any temperature, with documents and padding, and with the gradients of every weight."""
    tokens, targets = draw((2, 19), 97), draw((2, 19), 97, seed=3)
    targets[1, 15:] = -100
    documents = (torch.arange(19) // 8).expand(2, 19).contiguous()
    coefficients = torch.randn(2, 19, generator=torch.Generator().manual_seed(5))
    results = []
    for found in (
        small_model.log_probs(tokens, targets, documents, temperature=0.6),
        (small_model(tokens, documents) / 0.6)
        .log_softmax(-1)
        .gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        .masked_fill(targets == -100, 0),
    ):
        small_model.zero_grad()
        (found * coefficients).sum().backward()
        results.append([found.detach(), *(p.grad.clone() for p in small_model.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_log_probs_and_entropies_of_padded_rows_with_given_experts(small_model):
    tokens, targets = draw((2, 19), 97), draw((2, 19), 97, seed=3)
    valid = torch.arange(19).expand(2, 19) < torch.tensor([[19], [12]])
    targets[~valid] = -100
    documents = torch.where(valid, torch.arange(19) // 8, 9)
    given = torch.stack([torch.rand(2, 19, 5).argsort(-1)[..., :2] for _ in range(2)])
    given[:, ~valid] = -1
    options = {"valid": valid, "routing": given}
    found, entropies = small_model.log_probs(
        tokens, targets, document_ids=documents, temperature=0.6, entropy=True, **options
    )
    scores = small_model.lm_head(small_model.hidden(tokens, documents, **options).x) / 0.6
    expected = scores.log_softmax(-1)
    torch.testing.assert_close(found[valid], expected.gather(-1, targets.clamp_min(0)[..., None])[..., 0][valid])
    torch.testing.assert_close(entropies[valid], torch.distributions.Categorical(logits=scores).entropy()[valid])
    assert not found[~valid].any()
    assert not torch.allclose(small_model.log_probs(tokens, targets, documents, 0.6, valid=valid), found, atol=1e-4)
    with pytest.raises(ValueError, match=r"row 1, token 12 has the experts \[-1, -1\]"):
        small_model.log_probs(tokens, targets, documents, routing=given)


@torch.no_grad()
def test_initial_values_follow_the_report():
    cfg = ModelConfig(pattern="M*E-", vocab_size=2000, d_model=256, mamba_n_heads=64, n_groups=8)
    model = LM(cfg).init_weights(0)
    mixer = model.blocks[0].mixer
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 * 0.999 <= dt.min() <= dt.max() <= 0.1 * 1.001
    assert dt.log().std() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.2)
    A = mixer.A_log.exp()
    assert A.min() >= 1
    assert A.max() <= 16
    assert torch.equal(mixer.D, torch.ones(64))
    assert model.embeddings.weight.std().item() == pytest.approx(0.0173, rel=0.02)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.0173, rel=0.02)
    for writer in (mixer.out_proj, model.blocks[1].mixer.o_proj, model.blocks[3].mixer.down_proj):
        assert writer.weight.std().item() == pytest.approx(0.0173 / 2, rel=0.03)
    assert model.blocks[2].mixer.experts.down_proj.std().item() == pytest.approx(0.0173 / 2, rel=0.03)
    assert model.blocks[2].mixer.gate.e_score_correction_bias.abs().max() == 0


def test_initial_weights_depend_on_the_seed_alone(small_config):
    first, again, other = (LM(small_config).init_weights(s).lm_head.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_bfloat16_stays_close_to_float32(small_config):
    tokens = draw((1, 64), 97)
    cfg = dataclasses.replace(small_config, init_std=0.05)
    wide, narrow = LM(cfg).init_weights(0).eval(), LM(cfg).init_weights(0).eval()
    narrow.to_dtype(torch.bfloat16)
    assert narrow.blocks[1].mixer.gate.weight.dtype == torch.float32
    assert narrow.blocks[0].mixer.A_log.dtype == torch.float32
    logits = narrow(tokens)
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - wide(tokens)).norm() / wide(tokens).norm()
    assert error < 0.02
