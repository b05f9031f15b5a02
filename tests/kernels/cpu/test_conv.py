"""The C++ convolution against the reference, forward and backward: documents, states, odd sizes, views, bf16, nan."""

import pytest
import torch

from nano3 import kernels

from ..conftest import assert_same, outputs_and_grads


def make(B=2, T=37, C=35, W=4, dtype=torch.float32, state=True):
    inputs = {"x": torch.randn(B, T, C).to(dtype), "weight": torch.randn(C, W), "bias": torch.randn(C)}
    if state:
        inputs["initial_state"] = torch.randn(B, C, W - 1).to(dtype)
    return inputs


def same(inputs, tolerance=2e-5, **options):
    """The default backend equals the reference in float64, outputs, final states and gradients."""
    wide = {k: v.double() for k, v in inputs.items()}
    assert_same(
        outputs_and_grads(lambda **x: kernels.causal_conv1d(**x, **options), inputs),
        outputs_and_grads(lambda **x: kernels.causal_conv1d(**x, **options, backend="reference"), wide),
        tolerance,
    )


@pytest.mark.parametrize(
    "shape",
    [
        *({}, {"T": 1}, {"T": 2}, {"T": 4}, {"T": 16}, {"T": 67}),
        *({"W": 1}, {"W": 2}, {"W": 7, "T": 5}, {"W": 16}, {"W": 17}),
        *({"B": 1, "C": 1}, {"B": 3, "C": 16}, {"C": 600, "T": 21}, {"B": 1, "T": 150, "C": 130}),
    ],
)
@pytest.mark.parametrize("state", [True, False])
def test_equals_reference(shape, state):
    same(make(**shape, state=state))


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("W", [1, 3, 4, 6])
@pytest.mark.parametrize("row", ["starts", "last", "returns", "all different", "one", "blocks"])
def test_documents_do_not_mix(state, W, row):
    T = 37
    rows = {
        "starts": [0] + [1] * (T - 1),
        "last": [5] * (T - 1) + [4],
        "returns": [7, 7, 5, 7] + [7] * (T - 4),
        "all different": list(range(T)),
        "one": [3] * T,
        "blocks": [t // 16 for t in range(T)],
    }
    ids = torch.tensor([rows[row], [t // 5 for t in range(T)]], dtype=torch.int32)
    same(make(W=W, state=state), document_ids=ids)


def test_bf16():
    same(make(dtype=torch.bfloat16), 1e-2, document_ids=torch.randint(0, 9, (2, 37)).eq(0).cumsum(1))
    y, state = kernels.causal_conv1d(**make(dtype=torch.bfloat16))
    assert y.dtype == state.dtype == torch.bfloat16


def test_views_are_read_where_they_lie_or_copied():
    projected = torch.randn(2, 20, 90, requires_grad=True)
    inputs = make(T=20)
    for view in (lambda t: t[..., 7:42], lambda t: t[..., ::2][..., :35], lambda t: t[:, :, :1].expand(2, 20, 35)):
        results = []
        for backend in (None, "reference"):
            options = {**inputs, "x": view(projected), "backend": backend}
            y, state = kernels.causal_conv1d(**options)
            grad = torch.linspace(-1, 1, 2 * 35 * 20).view(2, 35, 20).transpose(1, 2)
            results.append([y.detach(), *torch.autograd.grad([y, state], projected, [grad, torch.ones_like(state)])])
        assert_same(*results, 2e-5)
    swapped = {**inputs, "weight": torch.randn(4, 35).t(), "x": torch.randn(20, 2, 35).transpose(0, 1)}
    same(swapped)


@pytest.mark.parametrize("shape", [{"B": 0}, {"C": 0}])
def test_nothing_to_do(shape):
    y, state = kernels.causal_conv1d(**make(**shape))
    assert y.numel() == state.numel() == 0


def test_sizes_that_do_not_fit_are_an_error_not_a_wrong_address():
    inputs = make()
    for name, wrong in (
        ("weight", (30, 4)),
        ("bias", (30,)),
        ("initial_state", (2, 30, 3)),
        ("initial_state", (1, 35, 2)),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            kernels.causal_conv1d(**{**inputs, name: torch.randn(wrong)})


def test_nan_reaches_the_steps_that_read_it_and_no_others():
    inputs = make(B=1, T=12, C=20, state=False)
    inputs["x"][0, 3, 5] = inputs["x"][0, 10, 6] = torch.nan
    expected = torch.zeros(1, 12, 20, dtype=torch.bool)
    expected[0, 3:7, 5] = expected[0, 10:, 6] = True
    assert torch.equal(kernels.causal_conv1d(**inputs)[0].isnan(), expected)


def test_threads_agree_and_repeat():
    inputs, ids = make(B=3, T=80, C=170), torch.randint(0, 20, (3, 80)).eq(0).cumsum(1)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(outputs_and_grads(lambda **x: kernels.causal_conv1d(**x, document_ids=ids), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))
    for other in results[1:]:
        assert_same(results[0], other, 1e-5)
