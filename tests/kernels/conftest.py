"""Helpers shared by the kernel tests: compare a backend with the reference, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def outputs_and_grads(call: Callable, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of call(**inputs) and gradients of a fixed random combination of them."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    outputs = call(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    total = sum((o.double() * torch.randn(o.shape, generator=generator, dtype=torch.float64)).sum() for o in outputs)
    grads = torch.autograd.grad(total, list(leaves.values()))
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.dtype == leaf.dtype
    return [*(o.detach() for o in outputs), *grads]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Every tensor agrees within `tolerance` of the expected one's largest value."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"tensor {i}"
        scale = e.double().abs().max().clamp_min(1e-3) if e.numel() else torch.tensor(1.0)
        error = ((a.double() - e.double()).abs().max() / scale).item() if e.numel() else 0.0
        assert error <= tolerance, f"tensor {i} is off by {error:.2e} of its largest value"


@pytest.fixture
def check() -> Callable:
    """check(op, inputs, tolerance=..., **options): eager equals reference, outputs and gradients."""

    def run(op: Callable, inputs: dict[str, Tensor], *, tolerance: float = 1e-10, **options) -> None:
        results = [
            outputs_and_grads(lambda name=name, **leaves: op(**leaves, **options, backend=name), inputs)
            for name in ("eager", "reference")
        ]
        assert all(torch.isfinite(r).all() for r in results[0])
        assert_same(*results, tolerance)

    return run


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made; views and buffers given with out= are not."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        fresh = [t for t in _tensors(out) if t.untyped_storage().data_ptr() not in known]
        self.elements = max([self.elements, *(t.untyped_storage().nbytes() // t.element_size() for t in fresh)])
        return out


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def largest_tensor() -> type[_Largest]:
    """Context manager whose `elements` is the size of the largest tensor made inside it, backward included."""
    return _Largest
