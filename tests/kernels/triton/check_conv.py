"""The convolution in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")
MOST = {torch.float32: 1e-6, torch.float16: 1e-3}
ODD = pytest.mark.slow


def documents(T, *rows):
    """(B, T) ids of rows that are cut at some places; an id comes back, which makes it no longer the same document."""
    ids = torch.zeros(len(rows), T, dtype=torch.int32)
    for row, cuts in zip(ids, rows, strict=True):
        for n, cut in enumerate(cuts):
            row[cut:] = (n + 1) % 2
    return ids


def inputs(T, C, width, cuts, state, dtype):
    """x, weight, bias, initial state and document ids; x and the state are views."""
    x = torch.randn(2, T, C + 3).to(dtype)[..., 1 : C + 1]
    weight, bias = torch.randn(C, width).to(dtype), torch.randn(C)
    ids = None if cuts is None else documents(T, *cuts)
    return x, weight, bias, torch.randn(2, width - 1, C).to(dtype).mT if state else None, ids


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("T", "C", "width", "cuts", "state"),
    [
        (9, 35, 4, ([1, 3, 4], [8]), True),
        (2, 5, 4, None, True),
        pytest.param(1, 700, 4, ([], []), True, marks=ODD),
        pytest.param(2, 5, 4, ([1], []), True, marks=ODD),
        pytest.param(70, 600, 4, None, False, marks=ODD),
        pytest.param(131, 37, 3, ([63, 64, 65], [129]), False, marks=ODD),
        pytest.param(131, 37, 2, ([130], [1, 2]), True, marks=ODD),
    ],
)
def test_causal_conv1d(T, C, width, cuts, state, dtype, assert_close):
    x, weight, bias, initial, ids = inputs(T, C, width, cuts, state, dtype)
    got = kernels.causal_conv1d(x, weight, bias, initial_state=initial, document_ids=ids, backend="triton")
    wide = None if initial is None else initial.double()
    arguments = x.double(), weight.double(), bias.double()
    expected = kernels.causal_conv1d(*arguments, initial_state=wide, document_ids=ids, backend="reference")
    assert got[0].dtype == got[1].dtype == dtype
    assert_close(got[0], expected[0], MOST[dtype])
    torch.testing.assert_close(got[1].double(), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("T", "C", "width", "cuts", "state"),
    [
        (9, 35, 4, ([1, 3, 4], [8]), True),
        (2, 5, 4, None, True),
        pytest.param(1, 700, 4, ([], []), True, marks=ODD),
        pytest.param(70, 600, 4, None, False, marks=ODD),
        pytest.param(62, 20, 4, ([61], [59, 60]), True, marks=ODD),
        pytest.param(131, 37, 3, ([63, 64, 65], [129]), False, marks=ODD),
        pytest.param(131, 37, 2, ([130], [1, 2]), True, marks=ODD),
        pytest.param(66, 12, 8, ([3], [60, 63]), True, marks=ODD),
    ],
)
def test_gradients(T, C, width, cuts, state, dtype, assert_close):
    """Of a combination of output and final state; the output's gradient is part of a wider tensor."""
    given = dict(zip(("x", "weight", "bias", "initial_state"), inputs(T, C, width, cuts, state, dtype), strict=False))
    given = {name: t for name, t in given.items() if t is not None}
    ids = None if cuts is None else documents(T, *cuts)
    douts = torch.randn(2, T, C + 2)[..., 1:-1].to(dtype), torch.randn(2, C, width - 1).to(dtype)

    def gradients(backend, wide):
        leaves = {name: (t.double() if wide else t).detach().requires_grad_() for name, t in given.items()}
        results = kernels.causal_conv1d(**leaves, document_ids=ids, backend=backend)
        return torch.autograd.grad(results, list(leaves.values()), [d.to(results[0].dtype) for d in douts])

    for got, expected, leaf in zip(
        gradients("triton", False), gradients("reference", True), given.values(), strict=True
    ):
        assert got.dtype == leaf.dtype
        assert_close(got, expected, MOST[dtype])


def test_what_comes_later_in_another_document_is_nothing_to_a_gradient():
    x, weight, bias, _, _ = inputs(6, 5, 4, None, False, torch.float32)
    x[:, 4:] = torch.nan
    x.requires_grad_()
    ids = torch.tensor([[0, 0, 0, 0, 1, 1]] * 2)
    out, _ = kernels.causal_conv1d(x, weight, bias, document_ids=ids, backend="triton")
    (dx,) = torch.autograd.grad(out[:, :4].sum(), x)
    assert torch.isfinite(dx[:, :4]).all()
