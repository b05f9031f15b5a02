"""The router's choice and its statistics."""

from __future__ import annotations

import pytest
import torch

from nano3.model.router import Router, RouterStats


def make_router(cfg) -> Router:
    torch.manual_seed(0)
    router = Router(cfg)
    torch.nn.init.normal_(router.weight)
    return router


def test_load_counts_the_tokens_of_each_expert(small_config):
    router = make_router(small_config)
    router.e_score_correction_bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0, -5.0]))
    routing = router(torch.randn(17, small_config.d_model))
    counted = [int((routing.expert_ids == e).sum()) for e in range(small_config.n_experts)]
    load = RouterStats(routing.scores, routing.expert_ids, (1, 17)).load
    assert load.tolist() == counted
    assert load.dtype == torch.int64
    assert (counted[1], counted[4]) == (17, 0)


def test_routing_needs_no_values_from_the_device(small_config):
    """On the meta device nothing has a value, so whatever would make the CPU wait for a GPU fails."""
    router = make_router(small_config).to("meta")
    routing = router(torch.randn(17, small_config.d_model, device="meta"))
    stats = RouterStats(routing.scores, routing.expert_ids, (1, 17))
    (stats.balance_loss + stats.sequence_balance_loss).backward()
    assert stats.load.shape == (small_config.n_experts,)


def test_the_sequence_balance_loss_is_megatrons_whatever_the_bias(small_config):
    """Its choices are those of the normalised scores alone (compute_routing_scores_for_aux_loss)."""
    router, (B, T), E, K = make_router(small_config), (3, 11), small_config.n_experts, small_config.top_k
    x = torch.randn(B * T, small_config.d_model)
    losses = []
    for bias in (torch.zeros(E), torch.linspace(-3, 3, E)):
        router.e_score_correction_bias.copy_(bias)
        routing = router(x)
        losses.append(RouterStats(routing.scores, routing.expert_ids, (B, T)).sequence_balance_loss)
    scores = torch.sigmoid(x @ router.weight.T)
    scores = (scores / scores.sum(-1, keepdim=True)).view(B, T, E)
    expected = 0.0
    for row in scores:
        chosen = torch.zeros(T, E).scatter(1, row.topk(K, dim=-1).indices, 1.0)
        expected += (row.sum(0) * chosen.sum(0)).sum() * E / (K * T * T) / B
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected)


@pytest.mark.parametrize("name", ["balance_loss", "sequence_balance_loss"])
def test_a_look_without_gradients_takes_none_from_the_loss(small_config, name):
    """As a run that logs the balance before it goes backward."""
    router = make_router(small_config)
    routing = router(torch.randn(17, small_config.d_model))
    stats = RouterStats(routing.scores, routing.expert_ids, (1, 17))
    with torch.no_grad():
        seen = float(getattr(stats, name))
    loss = getattr(stats, name)
    loss.backward()
    assert loss.item() == seen
    assert router.weight.grad.abs().max() > 0
