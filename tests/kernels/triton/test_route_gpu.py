"""The router in Triton on a GPU, at the 30B model's shapes."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]


@pytest.mark.parametrize("tokens", [1, 64, 2049])
def test_route(tokens, assert_close):
    x, weight, bias = torch.randn(tokens, 2688).bfloat16(), torch.randn(128, 2688) * 0.02, torch.randn(128) * 0.01
    got = [t.cpu() for t in kernels.route(x.cuda(), weight.cuda(), bias.cuda(), 6, 2.5, backend="triton")]
    expected = kernels.route(x.double(), weight.double(), bias.double(), 6, 2.5, backend="reference")
    assert_close(got[2], expected[2], 1e-4)
    assert_close(got[1], expected[1], 1e-2)
    chosen = (got[2] + bias).gather(1, got[0])
    assert_close(chosen, (expected[2] + bias).gather(1, expected[0]), 1e-4)  # which of near-equal ones is left open
    assert all(len(set(row)) == 6 for row in got[0].tolist())
