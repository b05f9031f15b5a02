"""The scan in Triton on a GPU, in bfloat16 at the 30B model's head and state sizes, results and gradients."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("T", [512, 333])
def test_scan(T, documents, assert_close):
    H, P, G, N = 8, 64, 1, 128
    shapes = {"x": (1, T, H, P), "dt": (1, T, H), "B": (1, T, G, N), "C": (1, T, G, N)}
    given = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    given |= {"A": -torch.rand(H) * 4 - 0.5, "D": torch.randn(H), "dt_bias": torch.randn(H) - 2}
    given["initial_state"] = torch.randn(1, H, P, N)
    ids = torch.arange(T).div(100, rounding_mode="floor")[None] if documents else None
    sides = []
    for device, backend in (("cuda", "triton"), ("cpu", "reference")):
        leaves = {name: m.to(device) if device == "cuda" else m.double() for name, m in given.items()}
        leaves = {name: m.requires_grad_() for name, m in leaves.items()}
        options = {"document_ids": None if ids is None else ids.to(device), "backend": backend}
        y, final = kernels.ssd_scan(**leaves, **options)
        weights = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        total = (y.double() * weights).sum() + final.double().sum()
        sides.append([y.detach(), final.detach(), *torch.autograd.grad(total, list(leaves.values()))])
    for got, expected in zip(*sides, strict=True):
        assert_close(got, expected, 1e-2)
