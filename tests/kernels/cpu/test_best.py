"""The most probable token of rows of logits."""

import pytest
import torch

from nano3 import kernels


@pytest.mark.parametrize(
    ("rows", "width", "limit"), [(1, 1, 1), (3, 67, 65), (5, 512, 512), (2, 4099, 1030), (33, 40, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_reference(rows, width, limit, dtype):
    logits = (torch.randn(rows, width) * 5).to(dtype)
    ids, totals = kernels.best_tokens(logits, limit)
    expected_ids, expected_totals = kernels.best_tokens(logits, limit, backend="reference")
    values = logits.gather(1, torch.stack([ids, expected_ids], 1))
    assert torch.equal(values[:, 0], values[:, 1])  # bfloat16 has equal ones
    assert int(ids.max()) < limit
    assert totals.dtype == torch.float32
    torch.testing.assert_close(totals, expected_totals, atol=1e-5, rtol=1e-5)


def test_the_first_of_equals():
    logits = torch.zeros(2, 3000)
    logits[1, [700, 701, 2999]] = 4.0
    assert kernels.best_tokens(logits, 3000)[0].tolist() == [0, 700]


def test_views_and_no_rows():
    wide = torch.randn(4, 50)
    for logits in (wide[:, :33], wide[::2], wide.t()):
        ids, totals = kernels.best_tokens(logits, 4)
        assert torch.equal(ids, logits[:, :4].argmax(-1))
        torch.testing.assert_close(totals, logits.logsumexp(-1))
    assert kernels.best_tokens(torch.empty(0, 9), 9)[0].shape == (0,)


@pytest.mark.parametrize("place", [0, 17, 66])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_row_without_numbers_has_no_probability_and_its_neighbours_do(place, wrong):
    logits = torch.randn(3, 67)
    logits[1, place] = wrong
    ids, totals = kernels.best_tokens(logits, 67)
    log_probs = logits.gather(1, ids[:, None])[:, 0] - totals
    assert torch.isnan(log_probs[1])
    assert torch.isfinite(log_probs[[0, 2]]).all()
    nothing = torch.full((1, 67), -torch.inf)
    ids, totals = kernels.best_tokens(nothing, 67)
    assert torch.isnan(nothing[0, ids[0]] - totals[0])


def test_impossible_tokens_add_nothing():
    logits = torch.full((1, 70), -torch.inf)
    logits[0, [3, 69]] = 2.0
    ids, totals = kernels.best_tokens(logits, 70)
    assert ids.tolist() == [3]
    torch.testing.assert_close(totals, logits.logsumexp(-1))


@pytest.mark.parametrize("gap", [0.0, 1.2, 5.1])
def test_totals_of_a_large_vocabulary(gap):
    logits = torch.full((1, 131_072), -gap)
    logits[0, 5] = 0.0
    _, total = kernels.best_tokens(logits, 131_072)
    assert float(total) == pytest.approx(float(logits.double().logsumexp(-1)), abs=2e-6)
