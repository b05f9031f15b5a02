"""The router in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch
from nano3.kernels.triton.route import choose_experts

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("S", "D", "E", "top_k"), [(3, 12, 9, 3), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in
                                                [(37, 40, 128, 6), (1, 8, 1, 1), (17, 8, 130, 22)])]
)  # fmt: skip
def test_route(S, D, E, top_k, dtype, assert_close):
    x, weight, bias = torch.randn(S, D).to(dtype), torch.randn(E, D), torch.linspace(-0.3, 0.3, E)
    ids, weights, scores = kernels.route(x, weight, bias, top_k, 2.5, backend="triton")
    expected = kernels.route(x.double(), weight.double(), bias.double(), top_k, 2.5, backend="reference")
    assert ids.dtype == torch.int64
    assert weights.dtype == scores.dtype == torch.float32
    assert torch.equal(ids, expected[0])
    assert_close(weights, expected[1], 1e-6)
    assert_close(scores, expected[2], 1e-6)


def test_equal_experts_by_their_number_nan_first_and_all_different():
    products = torch.zeros(3, 7)
    products[1, [2, 5]] = torch.nan
    bias = torch.tensor([0.0, 0, 1, 0, 0, 0, 0])
    bias[[0, 1, 3, 4]] = -torch.inf
    ids, _, _ = choose_experts(products, bias, 6, 1.0)
    assert ids.tolist() == [[2, 5, 6, 0, 1, 3], [2, 5, 6, 0, 1, 3], [2, 5, 6, 0, 1, 3]]
    ids, weights, _ = choose_experts(torch.zeros(2, 5), torch.zeros(5), 4, 2.0)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert weights.tolist() == [[0.5] * 4] * 2
