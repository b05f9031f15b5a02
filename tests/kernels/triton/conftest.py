"""Fixtures of the checks: outputs that hold nan before they are written, and PyTorch's ops out of reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nano3.kernels.eager import FUNCTIONS as EAGER
from torch import Tensor


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """torch.empty gives nan, so that a place that no kernel writes shows."""

    def fill(make: Callable) -> Callable:
        def call(*args, **options):
            fresh = make(*args, **options)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh.fill_(-7)

        return call

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, fill(getattr(torch, name)))


@pytest.fixture
def no_eager(monkeypatch) -> None:
    """A call that Triton hands to PyTorch fails."""

    def refuse(name: str) -> Callable:
        def call(*_args, **_options):
            raise AssertionError(f"{name} went to the eager backend")

        return call

    for name in EAGER:
        monkeypatch.setitem(EAGER, name, refuse(name))


@pytest.fixture
def assert_close() -> Callable[[Tensor, Tensor, float], None]:
    """assert_close(got, expected, most): relative error in the Euclidean norm; a nan never passes."""

    def check(got: Tensor, expected: Tensor, most: float) -> None:
        assert got.shape == expected.shape
        wide = expected.to("cpu", torch.float64)
        error = float((got.to("cpu", torch.float64) - wide).norm() / wide.norm().clamp_min(1e-30))
        assert error < most, f"relative error {error:.2e}"

    return check
