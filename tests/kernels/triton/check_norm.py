"""Norms in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")
MOST = {torch.float32: 1e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize("shape", [(3, 35), pytest.param((2, 2, 3000), marks=pytest.mark.slow)])
def test_rms_norm(shape, dtype, assert_close):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1])
    got = kernels.rms_norm(x, weight, 1e-5, backend="triton")
    assert got.dtype == dtype
    assert_close(got, kernels.rms_norm(x.double(), weight.double(), 1e-5, backend="reference"), MOST[dtype])


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(("width", "groups"), [(66, 3), pytest.param(1040, 2, marks=pytest.mark.slow)])
def test_gated_rms_norm_of_rows_that_are_parts_of_wider_ones(width, groups, dtype, assert_close):
    wide = torch.randn(2, 2, 2 * width + 5).to(dtype)
    y, z, weight = wide[..., 1 : width + 1], wide[..., width + 3 : 2 * width + 3], torch.randn(width).to(dtype)
    got = kernels.gated_rms_norm(y, z, weight, 1e-2, groups, backend="triton")
    expected = kernels.gated_rms_norm(y.double(), z.double(), weight.double(), 1e-2, groups, backend="reference")
    assert_close(got, expected, MOST[dtype])


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("rows", "width", "groups"), [(7, 30, 0), (5, 66, 3), pytest.param(9, 1040, 2, marks=pytest.mark.slow)]
)
def test_gradients(rows, width, groups, dtype, assert_close):
    """Of rms_norm (no groups) and gated_rms_norm; inputs and the result's gradient are parts of wider rows."""
    wide = torch.randn(rows, 3 * width + 2).to(dtype)
    inputs = [wide[:, 1 : width + 1], wide[:, width + 1 : 2 * width + 1], torch.randn(width)]
    inputs, dout = [inputs[0], *inputs[1 if groups else 2 :]], wide[:, 2 * width + 1 : 3 * width + 1]

    def gradients(*inputs, backend):
        leaves = [t.detach().requires_grad_() for t in inputs]
        op, options = (kernels.gated_rms_norm, (groups,)) if groups else (kernels.rms_norm, ())
        out = op(*leaves, 1e-2, *options, backend=backend)
        return out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))

    results = gradients(*inputs, backend="triton")
    for got, expected in zip(results, gradients(*(t.double() for t in inputs), backend="reference"), strict=True):
        assert_close(got, expected, MOST[dtype])
    assert [t.dtype for t in results[1:]] == [t.dtype for t in inputs]
