"""Calls that Triton's kernels do not take go to PyTorch; run by test_interpreted.py."""

import pytest
import torch

from nano3 import kernels


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_kernels_do_not_read(dtype):
    x, weight = torch.randn(2, 9, dtype=dtype), torch.randn(9, dtype=dtype)
    got, expected = (kernels.rms_norm(x, weight, 1e-5, backend=name) for name in ("triton", "eager"))
    assert torch.equal(got, expected)


def test_what_needs_a_gradient():
    x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((1, 3, 5), (5, 4), (5,)))
    grads = [
        torch.autograd.grad(kernels.causal_conv1d(x, weight, bias, backend=name)[0].square().sum(), (x, weight, bias))
        for name in ("triton", "eager")
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_on_a_cpu_triton_runs_only_where_it_is_forced(monkeypatch):
    assert "triton" not in {choice.backend for choice in kernels.explain("cpu")}
    monkeypatch.setenv("NANO3_BACKEND", "triton")
    assert kernels.choose("rms_norm", "cpu")[0] == "triton"
