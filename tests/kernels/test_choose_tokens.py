"""Tokens chosen by operations on tensors alone are those of the distributions that requests ask for."""

import itertools
import math

import numpy as np
import pytest
import torch
from nano3.kernels.cpu.draw import Draw
from nano3.kernels.eager.draw import CANDIDATES, choose_tokens

CUTS = [(0, 1.0, 0.0), (0, 1.0, 0.1), (5, 1.0, 0.0), (0, 0.8, 0.0), (7, 0.9, 0.02), (1, 1.0, 0.0), (0, 0.3, 0.0)]


def reference(x, limit, draw):
    """(id, its log-probability, the same after temperature and cuts), in float64."""
    x = x.double().numpy()
    total = np.log(np.exp(x - x.max()).sum()) + x.max()
    order = sorted(range(limit), key=lambda i: (-x[i], i))
    if draw.temperature == 0:
        return order[0], x[order[0]] - total, x[order[0]] - total
    weights = np.exp((x[:limit] - x[:limit].max()) / draw.temperature)
    cut = draw.top_p < 1 or 0 < draw.top_k < limit
    kept = order if cut else list(range(limit))
    kept = kept[: draw.top_k] if draw.top_k else kept
    if draw.top_p < 1:
        ends = weights[kept].cumsum()
        kept = kept[: int(np.searchsorted(ends, draw.top_p * ends[-1])) + 1]
    kept = [i for i in kept if weights[i] >= draw.min_p]
    ends = weights[kept].cumsum()
    chosen = kept[int(np.searchsorted(ends, draw.uniform * ends[-1], side="right"))]
    return chosen, x[chosen] - total, math.log(weights[chosen] / ends[-1])


def columns(draws):
    return torch.tensor(draws, dtype=torch.float64).T.contiguous()


def assert_chosen(logits, limit, draws, **how):
    found = choose_tokens(logits, limit, columns(draws), **how)
    expected = [reference(row, limit, draw) for row, draw in zip(logits, draws, strict=True)]
    assert found.ids.tolist() == [i for i, *_ in expected]
    torch.testing.assert_close(found.log_probs.tolist(), [p for _, p, _ in expected], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.drawn_log_probs.tolist(), [p for *_, p in expected], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("vocab_size", "limit"), [(50, 50), (700, 600), (5000, 4900)])
def test_rows_of_all_kinds_are_drawn_from_their_own_distributions(vocab_size, limit):
    generator = torch.Generator().manual_seed(vocab_size)
    uniforms = torch.rand(100, generator=generator, dtype=torch.float64).tolist()
    kinds = itertools.product([0.0, 0.7, 1.0, 1.6], CUTS)
    draws = [Draw(t, *cut, uniform) for (t, cut), uniform in zip(kinds, uniforms, strict=False)]
    logits = torch.randn(len(draws), vocab_size, generator=generator) * 3
    assert_chosen(logits, limit, draws, drawn=True, cut=True)
    whole = [m for m, d in enumerate(draws) if d.top_k == 0 and d.top_p == 1]
    assert_chosen(logits[whole], limit, [draws[m] for m in whole], drawn=True, cut=False)
    greedy = [m for m, d in enumerate(draws) if d.temperature == 0]
    assert_chosen(logits[greedy], limit, [draws[m] for m in greedy], drawn=False, cut=False)


def test_equal_logits_are_taken_by_their_ids():
    logits = torch.zeros(3, 4000)
    draws = [Draw(0, 0, 1, 0, 0.5), Draw(1, 3, 1, 0, 0.99), Draw(1, 0, 1, 0, 0.5)]
    found = choose_tokens(logits, 4000, columns(draws), drawn=True, cut=True)
    assert found.ids[[0, 2]].tolist() == [0, 2000]
    assert int(found.ids[1]) in (-1, 2)  # which of the equal ones are candidates is not known


def test_a_cut_beyond_the_candidates_is_left_to_others():
    """And says so, whatever is beside it."""
    logits = torch.randn(3, 4 * CANDIDATES, generator=torch.Generator().manual_seed(1)) * 0.01
    draws = [Draw(1, 0, 0.9, 0, 0.5), Draw(1, 10, 1, 0, 0.5), Draw(1, 2 * CANDIDATES, 1, 0, 0.5)]
    found = choose_tokens(logits, logits.shape[1], columns(draws), drawn=True, cut=True)
    assert [int(i) == -1 for i in found.ids] == [True, False, True]


@pytest.mark.parametrize("top_k", [4 * CANDIDATES, 1 << 30])
def test_a_top_k_of_all_tokens_and_more_cuts_nothing(top_k):
    logits = torch.randn(1, 4 * CANDIDATES, generator=torch.Generator().manual_seed(1)) * 3
    assert_chosen(logits, logits.shape[1], [Draw(1, top_k, 0.5, 0, 0.7)], drawn=True, cut=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_numbers_is_told_and_leaves_the_others_alone(bad):
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(2))
    draws = [Draw(0, 0, 1, 0, 0.5), Draw(1, 0, 1, 0, 0.5), Draw(1, 0, 0.9, 0, 0.5), Draw(1, 5, 1, 0, 0.3)]
    alone = choose_tokens(logits[3:], 3000, columns(draws[3:]), drawn=True, cut=True)
    logits[:3, 7] = bad
    found = choose_tokens(logits, 3000, columns(draws), drawn=True, cut=True)
    assert found.drawn_log_probs[:3].isnan().all()
    assert all(torch.equal(a[3:], b) for a, b in zip(found, alone, strict=True))
