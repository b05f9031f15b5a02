"""A pass that is given the experts of another one uses them, with weights of its own scores."""

from __future__ import annotations

import pytest
import torch

from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool

PASSES = {"whole": (0, False), "recomputed": (0, True), "in pieces": (16, True), "rows together": (90, True)}


@pytest.fixture
def model(small_config):
    model = LM(small_config).init_weights(1).double().train()
    model.compute_dtype = torch.float64
    return model


def draw(rows=2, width=40):
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.rand(5, generator=generator).argsort()[:2] for _ in range(2 * rows * width)])
    return torch.randint(3, 97, (rows, width), generator=generator), ids.view(2, rows, width, 2)


@pytest.mark.parametrize("way", PASSES)
def test_the_choice_of_a_pass_given_back_changes_nothing(model, way):
    tokens, _ = draw()
    free = model.hidden(tokens, keep_expert_ids=True)
    model.sequence_chunk, model.checkpoint_activations = PASSES[way]
    again = model.hidden(tokens, routing=free.expert_ids.to(torch.uint8), keep_expert_ids=True)
    assert torch.equal(again.expert_ids, free.expert_ids)
    torch.testing.assert_close(again.x, free.x, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again.balance_loss, free.balance_loss)


@pytest.mark.parametrize("way", PASSES)
def test_given_experts_are_used_and_counted_and_the_router_learns(model, way):
    tokens, given = draw()
    free = model.hidden(tokens)
    results = []
    for chunk, recompute in (PASSES["whole"], PASSES[way]):
        model.sequence_chunk, model.checkpoint_activations = chunk, recompute
        model.zero_grad()
        hidden = model.hidden(tokens, routing=given, keep_expert_ids=True)
        hidden.x.square().sum().backward()
        assert torch.equal(hidden.expert_ids, given)
        assert torch.equal(hidden.loads, torch.stack([torch.bincount(ids.flatten(), minlength=5) for ids in given]))
        results.append((hidden.x, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert (results[0][0] - free.x).abs().max() > 1e-3
    assert results[0][1]["blocks.1.mixer.gate.weight"].abs().max() > 1e-6
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)


def test_weights_are_the_given_experts_scores_without_bias_over_their_sum(model):
    gate, x = model.blocks[1].mixer.gate, torch.randn(7, 32, dtype=torch.float64)
    gate.e_score_correction_bias.copy_(torch.tensor([9.0, -9, 3, 0, 1]))
    given = draw(1, 7)[1][0, 0]
    routing = gate(x, given)
    chosen = torch.sigmoid(x @ gate.weight.T).gather(1, given)
    torch.testing.assert_close(routing.weights, gate.scale * chosen / chosen.sum(1, keepdim=True))
    numeric = torch.autograd.gradcheck(lambda m: gate(m, given).weights, x.requires_grad_())
    assert numeric


@pytest.mark.parametrize("chunk", [0, 16, 90])
def test_padding_keeps_no_experts_and_reads_none(model, chunk):
    tokens, given = draw()
    valid = torch.arange(40).expand(2, 40) < torch.tensor([[40], [23]])
    given[:, ~valid] = -1
    model.sequence_chunk = chunk
    hidden = model.hidden(tokens, valid=valid, routing=given, keep_expert_ids=True)
    assert torch.equal(hidden.expert_ids, given)


def test_experts_are_kept_only_where_asked_for_and_of_another_shape_refused(model):
    tokens, given = draw()
    assert model.hidden(tokens).expert_ids is None
    with pytest.raises(ValueError, match=r"routing has shape \(1, 2, 40, 2\); it must be .* = \(2, 2, 40, 2\)"):
        model.hidden(tokens, routing=given[:1])


WRONG = {"outside": [2, 5], "twice": [3, 3], "padding at a token": [-1, -1], "one of them": [4, -1]}


@pytest.mark.parametrize("experts", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_experts_that_no_router_chose_are_refused_by_place(model, experts, dtype):
    tokens, given = draw()
    given[1, 0, 33] = torch.tensor(experts)
    valid = torch.ones(2, 40, dtype=torch.bool)
    for mask in (None, valid):
        with pytest.raises(ValueError, match=r"routing: MoE block 1, row 0, token 33 .* different ones from 0 to 4"):
            model.hidden(tokens, valid=mask, routing=given.to(dtype))
    valid[0, 33] = False
    model.hidden(tokens, valid=valid, routing=given.to(dtype))


def test_experts_are_integers(model):
    tokens, given = draw()
    with pytest.raises(ValueError, match="routing is float32; expert ids are integers"):
        model.hidden(tokens, routing=given.float())


def test_a_continued_sequence_keeps_and_takes_experts_too(model):
    model.eval()
    tokens, given = draw()
    with torch.no_grad():
        whole = model.hidden(tokens, routing=given).x
        state, parts = model.new_state(2), []
        for piece, ids in zip(tokens.split([30, 1, 9], 1), given.split([30, 1, 9], 2), strict=True):
            hidden = model.hidden(piece, state=state, routing=ids, keep_expert_ids=True)
            assert torch.equal(hidden.expert_ids, ids)
            parts.append(hidden.x)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-8, atol=1e-10)


@torch.inference_mode()
def test_a_decoding_step_keeps_experts_in_whatever_way_it_goes(model, monkeypatch):
    model = LM(model.cfg).init_weights(1).eval()
    tokens, kept = draw(1, 4)[0], []
    for backend in ("", "eager"):
        monkeypatch.setenv("NANO3_BACKEND", backend)
        pool = StatePool(model.cfg, n_slots=4, n_pages=4, page_size=4)
        for slot in range(4):
            pool.clear_slot(slot)
        plan = Plan([Span(1, slot, pages=[slot]) for slot in range(4)], 4)
        kept.append(model.hidden(tokens, state=pool.state(plan), keep_expert_ids=True).expert_ids)
    assert kept[0].shape == (2, 1, 4, 2)
    assert torch.equal(*(ids.sort(-1).values for ids in kept))
