"""The convolution in Triton on a GPU, in bfloat16 at the 30B model's shapes."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("T", [1, 2, 2049])
def test_causal_conv1d(T, packed, assert_close):
    x = torch.randn(2, T, 10304).bfloat16()[..., 4096 : 4096 + 6144]
    weight, bias = torch.randn(6144, 4).bfloat16(), torch.randn(6144).bfloat16()
    state = torch.randn(2, 6144, 3).bfloat16() if packed else None
    ids = (torch.arange(T).expand(2, T) // 31).contiguous() if packed else None
    on_gpu = None if state is None else state.cuda(), None if ids is None else ids.cuda()
    inputs = x.cuda(), weight.cuda(), bias.cuda()
    got = kernels.causal_conv1d(*inputs, initial_state=on_gpu[0], document_ids=on_gpu[1], backend="triton")
    wide, start = (x.double(), weight.double(), bias.double()), None if state is None else state.double()
    expected = kernels.causal_conv1d(*wide, initial_state=start, document_ids=ids, backend="reference")
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, 1e-2)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients(packed, assert_close):
    T, C = 1025, 6144
    given = {
        "x": torch.randn(2, T, 10304).bfloat16()[..., 4096 : 4096 + C],
        "weight": torch.randn(C, 4),
        "bias": torch.randn(C),
        "initial_state": torch.randn(2, C, 3).bfloat16(),
    }
    ids = (torch.arange(T).expand(2, T) // 31).contiguous() if packed else None
    dout, dfinal = torch.randn(2, T, C).bfloat16(), torch.randn(2, C, 3).bfloat16()

    def gradients(backend, device, wide):
        leaves = {name: (t.double() if wide else t).to(device).requires_grad_() for name, t in given.items()}
        options = {"document_ids": None if ids is None else ids.to(device), "backend": backend}
        results = kernels.causal_conv1d(**leaves, **options)
        return torch.autograd.grad(results, list(leaves.values()), [d.to(results[0]) for d in (dout, dfinal)])

    found = gradients("triton", "cuda", False)
    for got, expected in zip(found, gradients("reference", "cpu", True), strict=True):
        assert_close(got, expected, 1e-2)
    for got, again in zip(found, gradients("triton", "cuda", False), strict=True):
        assert torch.equal(got, again)
