"""The router's choice and its statistics."""

from __future__ import annotations

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
