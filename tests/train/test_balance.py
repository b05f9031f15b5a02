import pytest
import torch

from nano3.train.balance import load_stats, update_biases


def test_busy_experts_lose_and_idle_ones_gain_in_place():
    bias = torch.tensor([0.5, 0.0, 0.0, 0.0])
    update_biases([bias], torch.tensor([[9, 1, 4, 2]]), rate=0.25)
    assert bias.tolist() == [0.25, 0.25, 0.0, 0.25]


def test_each_block_follows_its_own_load():
    biases = [torch.zeros(2), torch.zeros(2)]
    update_biases(biases, torch.tensor([[5, 3], [3, 5]]), rate=1.0)
    assert [b.tolist() for b in biases] == [[-1.0, 1.0], [1.0, -1.0]]


def test_rate_zero_changes_nothing():
    bias = torch.zeros(2)
    update_biases([bias], torch.tensor([[5, 3]]), rate=0.0)
    assert bias.tolist() == [0.0, 0.0]


def test_the_bias_evens_out_skewed_routing():
    """Experts are chosen by fixed unequal scores plus bias, as the router does it."""
    scores = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 0.5, 8)
    bias = torch.zeros(8)

    def loads():
        return torch.bincount((scores + bias).topk(2).indices.flatten(), minlength=8)[None]

    before = load_stats(loads()).max_over_mean[0]
    for _ in range(300):
        update_biases([bias], loads(), rate=2e-3)
    assert before > 2.0
    assert load_stats(loads()).max_over_mean[0] < 1.1


def test_statistics_of_a_known_load():
    stats = load_stats(torch.tensor([[6, 2, 2, 2]]))
    assert stats.max_over_mean == [2.0]
    assert stats.shares[0] == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6])
    assert stats.variation[0] == pytest.approx(3**0.5 / 3)


def test_a_model_without_experts_has_no_statistics():
    assert load_stats(torch.zeros(0, 0, dtype=torch.int64)).max_over_mean == []
