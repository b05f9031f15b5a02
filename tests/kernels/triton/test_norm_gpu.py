"""Norms in Triton on a GPU, in bfloat16 at the 30B model's shapes."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]


@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_rms_norm(rows, assert_close):
    x, weight = torch.randn(rows, 2688).bfloat16(), torch.randn(2688).bfloat16()
    got = kernels.rms_norm(x.cuda(), weight.cuda(), 1e-5, backend="triton")
    assert_close(got, kernels.rms_norm(x.double(), weight.double(), 1e-5, backend="reference"), 1e-2)


@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_gated_rms_norm(rows, assert_close):
    projected, weight = torch.randn(rows, 10304).bfloat16(), torch.randn(4096)
    y, z = projected[:, 4096:8192], projected[:, :4096]
    got = kernels.gated_rms_norm(y.cuda(), z.cuda(), weight.cuda(), 1e-5, 8, backend="triton")
    expected = kernels.gated_rms_norm(y.double(), z.double(), weight.double(), 1e-5, 8, backend="reference")
    assert_close(got, expected, 1e-2)


def test_gradients(assert_close):
    projected, weight = torch.randn(2049, 10304).bfloat16(), torch.randn(4096)
    inputs, dout = (projected[:, 4096:8192], projected[:, :4096], weight), projected[:, 6000:10096]

    def gradients(*inputs, backend):
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = kernels.gated_rms_norm(*leaves, 1e-5, 8, backend=backend)
        return torch.autograd.grad(out, leaves, dout.to(out))

    got = gradients(*(t.cuda() for t in inputs), backend="triton")
    for g, e in zip(got, gradients(*(t.double() for t in inputs), backend="reference"), strict=True):
        assert_close(g, e, 1e-2)
