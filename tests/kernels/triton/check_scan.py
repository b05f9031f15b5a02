"""The scan in Triton against the float64 reference, results and all gradients; run by test_interpreted.py."""

import pytest
import torch
from torch import Tensor

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")
MOST = {torch.float32: 3e-6, torch.float16: 5e-3}
DOCUMENTS = [[0] * 7 + [1] * 25 + [0] + [4] * 37, [9] * 64 + [2] * 6]  # cut in chunks, at an edge; an id comes back


def inputs(T: int, P: int, N: int, dtype: torch.dtype = torch.float32, *, B: int = 2, G: int = 2, H: int = 2) -> dict:
    """x, B and C are views of one projection, as in the model."""
    wide = torch.randn(B, T, H * P + 2 * G * N + 3).to(dtype)
    x, k, q, _ = wide.split([H * P, G * N, G * N, 3], dim=-1)
    return {
        "x": x.unflatten(-1, (H, P)),
        "dt": torch.randn(B, T, 2 * H).to(dtype)[..., 1 : H + 1],
        "A": -torch.rand(H) * 4 - 0.5,
        "B": k.unflatten(-1, (G, N)),
        "C": q.unflatten(-1, (G, N)),
        "D": torch.randn(H),
        "dt_bias": torch.randn(H) - 2,
    }


def results(tensors: dict[str, Tensor], backend: str, **options) -> list[Tensor]:
    """Outputs and the gradients of a fixed combination of them."""
    leaves = {name: m.detach().requires_grad_() for name, m in tensors.items()}
    outputs = kernels.ssd_scan(**leaves, **options, backend=backend)
    total = sum((m.double() * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in outputs)
    return [*(m.detach() for m in outputs), *torch.autograd.grad(total, list(leaves.values()))]


def check(tensors: dict[str, Tensor], assert_close, most: float, **options) -> None:
    got = results(tensors, "triton", **options)
    expected = results({name: m.double() for name, m in tensors.items()}, "reference", **options)
    for found, exact in zip(got, expected, strict=True):
        assert_close(found, exact, most)
    for found, given in zip(got[2:], tensors.values(), strict=True):
        assert found.dtype == given.dtype


@pytest.mark.parametrize("rows", [[0], pytest.param([1, 0], marks=pytest.mark.slow)])
def test_documents_and_an_initial_state(rows, assert_close):
    given = inputs(70, 20, 18, B=len(rows))
    given["initial_state"] = torch.randn(len(rows), 2, 20, 18)
    check(given, assert_close, MOST[torch.float32], document_ids=torch.tensor(DOCUMENTS)[rows])


@pytest.mark.parametrize("chunk", [128, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 31))])
def test_one_document_of_one_group(chunk, assert_close):
    check(inputs(35, 16, 16, B=1, G=1), assert_close, MOST[torch.float32], chunk_size=chunk)


def test_half_precision(assert_close):
    check(inputs(65, 32, 16, torch.float16, B=1), assert_close, MOST[torch.float16])


@pytest.mark.slow
def test_strong_and_weak_decay(assert_close):
    given = inputs(80, 16, 16, B=1, H=4)
    given["A"], given["dt_bias"] = torch.tensor([-500.0, -12.0, -1e-4, -1e-9]), torch.full((4,), 2.0)
    check(given, assert_close, 1e-4)


def test_steps_far_below_one(assert_close):
    given = inputs(33, 16, 16, B=1)
    given["dt_bias"] = torch.full((2,), -14.0)  # softplus(-14) = 8e-7: log(1 + e) of float32 has no digits left
    check(given, assert_close, MOST[torch.float32])


def test_two_halves_are_the_whole(assert_close):
    given = inputs(70, 16, 16, B=1)
    whole, final = kernels.ssd_scan(**given, backend="triton")
    state, parts = None, []
    for part in (slice(0, 19), slice(19, 70)):
        cut = {name: m[:, part] if name in ("x", "dt", "B", "C") else m for name, m in given.items()}
        y, state = kernels.ssd_scan(**cut, initial_state=state, backend="triton")
        parts.append(y)
    assert_close(torch.cat(parts, 1), whole, 1e-5)
    assert_close(state, final, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", MOST)
def test_the_sizes_of_the_30b(dtype, assert_close):
    given = inputs(150, 64, 128, dtype, B=1, G=1, H=2)
    documents = torch.tensor([[0] * 100 + [1] * 50])
    check(given, assert_close, MOST[dtype], document_ids=documents)
