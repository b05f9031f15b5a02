from itertools import pairwise

import pytest
import torch

from nano3 import kernels

ONE_TOKEN_DOCUMENTS = [0] * 5 + [1, 2, 3] + [4] * 8 + [5] * 7  # resets at 5, 6, 7, 8 and 16, with chunks of 8


def make(B=2, T=23, H=4, P=3, N=5, G=2, dtype=torch.float64, state=True):
    inputs = {
        "x": torch.randn(B, T, H, P, dtype=dtype),
        "dt": torch.randn(B, T, H, dtype=dtype),
        "A": -torch.rand(H).to(dtype) * 4 - 0.1,
        "B": torch.randn(B, T, G, N, dtype=dtype),
        "C": torch.randn(B, T, G, N, dtype=dtype),
        "D": torch.randn(H).to(dtype),
        "dt_bias": torch.randn(H).to(dtype) - 1,
    }
    if state:
        inputs["initial_state"] = torch.randn(B, H, P, N, dtype=dtype)
    return inputs


def part(inputs, start, stop, **changes):
    """The same scan over a part of time."""
    cut = {k: v[:, start:stop] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
    return {**cut, **changes}


@pytest.mark.parametrize(
    "shape", [{}, {"T": 1}, {"T": 8}, {"B": 1, "G": 1}, {"G": 4, "T": 17}, {"T": 9, "H": 1, "G": 1}]
)
@pytest.mark.parametrize("state", [True, False])
def test_eager_equals_recurrence(check, shape, state):
    check(kernels.ssd_scan, make(**shape, state=state), chunk_size=8)


@pytest.mark.parametrize("state", [True, False])
def test_documents_reset_the_state(check, state):
    ids = torch.tensor([ONE_TOKEN_DOCUMENTS, [3] * 10 + [1] * 10 + [3] * 3])
    check(kernels.ssd_scan, make(state=state), document_ids=ids, chunk_size=8)


def test_every_token_a_document(check):
    check(kernels.ssd_scan, make(), document_ids=torch.arange(23).expand(2, 23), chunk_size=8)


def test_default_chunk_and_single_precision(check):
    inputs = make(T=150, dtype=torch.float32)
    check(kernels.ssd_scan, inputs, tolerance=2e-5)


def test_strong_and_weak_decay_stay_finite_and_right(check):
    inputs = make(dtype=torch.float32)
    inputs["A"] = torch.tensor([-500.0, -80.0, -1e-4, -1e-9])
    inputs["dt"] = inputs["dt"] * 10
    # fp32 sums of log decays near 1e5 carry an absolute error of 1e-2
    check(kernels.ssd_scan, inputs, chunk_size=8, tolerance=5e-4)


@pytest.mark.parametrize("backend", ["eager", None])
def test_strong_decay_gradient_is_not_lost_in_rounding(backend):
    inputs = make(B=1, T=64, state=False)
    inputs["A"], inputs["dt_bias"] = torch.full((4,), -12.0).double(), torch.full((4,), 2.0).double()
    inputs["dt"] = inputs["dt"] / 10
    single = {k: v.float() for k, v in inputs.items()}
    grads = []
    for values in (single, inputs):
        values["A"].requires_grad_()
        y, _ = kernels.ssd_scan(**values, chunk_size=64, backend=backend)
        grads.append(torch.autograd.grad(y.square().sum(), values["A"])[0].double())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=0)


def test_bf16_activations_with_fp32_parameters(check):
    inputs = {k: v.float() for k, v in make(T=70).items()}
    inputs |= {k: inputs[k].bfloat16() for k in ("x", "dt", "B", "C")}
    check(kernels.ssd_scan, inputs, tolerance=2e-2)
    y, state = kernels.ssd_scan(**inputs)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_documents_equal_separate_ones(dtype):
    inputs = make(state=False, dtype=dtype)
    ids = torch.tensor(ONE_TOKEN_DOCUMENTS).expand(2, -1)
    packed, final = kernels.ssd_scan(**inputs, document_ids=ids, chunk_size=8)
    bounds = [0, 5, 6, 7, 8, 16, 23]
    for start, stop in pairwise(bounds):
        alone, state = kernels.ssd_scan(**part(inputs, start, stop), chunk_size=8)
        torch.testing.assert_close(packed[:, start:stop], alone)
    torch.testing.assert_close(final, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cut", [1, 8, 13])
def test_two_halves_equal_the_whole(cut, dtype):
    inputs = make(dtype=dtype)
    y, final = kernels.ssd_scan(**inputs, chunk_size=8)
    first, state = kernels.ssd_scan(**part(inputs, 0, cut), chunk_size=8)
    second, last = kernels.ssd_scan(**part(inputs, cut, 23, initial_state=state), chunk_size=8)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("eager", torch.float64), ("reference", torch.float64), (None, torch.float32)]
)
def test_steps_equal_the_scan(backend, dtype):
    inputs = make(dtype=dtype)
    y, final = kernels.ssd_scan(**inputs, backend=backend)
    state = inputs["initial_state"].clone()
    for t in range(23):
        token = {k: v[:, t] for k, v in inputs.items() if k in ("x", "dt", "B", "C")}
        shared = {k: inputs[k] for k in ("A", "D", "dt_bias")}
        torch.testing.assert_close(kernels.ssd_step(state, **token, **shared, backend=backend), y[:, t])
    torch.testing.assert_close(state, final)


def test_gradcheck():
    inputs = make(B=1, T=5, H=2, P=2, N=2, G=1)
    leaves = [v.requires_grad_() for v in inputs.values()]
    ids = torch.tensor([[0, 0, 0, 1, 1]])

    def scan(*values):
        named = dict(zip(inputs, values, strict=True))
        return kernels.ssd_scan(**named, document_ids=ids, chunk_size=2, backend="eager")

    assert torch.autograd.gradcheck(scan, leaves)


def test_views_of_one_projection(check):
    inputs = make()
    packed = torch.cat([inputs["x"].flatten(2), inputs["B"].flatten(2), inputs["C"].flatten(2), inputs["dt"]], dim=2)
    x, B, C, dt = packed.split([12, 10, 10, 4], dim=2)
    views = {**inputs, "x": x.unflatten(2, (4, 3)), "B": B.unflatten(2, (2, 5)), "C": C.unflatten(2, (2, 5)), "dt": dt}
    torch.testing.assert_close(kernels.ssd_scan(**views), kernels.ssd_scan(**inputs))


@pytest.mark.slow
def test_the_eager_scan_can_be_compiled():
    inputs = make(T=9, dtype=torch.float32)

    def scan(*values):
        return kernels.ssd_scan(**dict(zip(inputs, values, strict=True)), chunk_size=8, backend="eager")[0]

    leaves = [v.requires_grad_() for v in inputs.values()]
    torch._dynamo.reset()
    try:
        results = [[run(*leaves)] for run in (scan, torch.compile(scan, backend="aot_eager"))]
        for result in results:
            result += torch.autograd.grad(result[0].square().sum(), leaves)
    finally:
        torch._dynamo.reset()
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["eager", None])
def test_no_quadratic_memory(largest_tensor, backend):
    inputs = make(B=1, T=4096, H=1, P=2, N=2, G=1, dtype=torch.float32, state=False)
    inputs["x"].requires_grad_()
    with largest_tensor() as seen:
        kernels.ssd_scan(**inputs, backend=backend)[0].sum().backward()
    assert seen.elements <= 4096 * 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"chunk_size": 0}, "chunk_size"), ({"document_ids": torch.zeros(2, 5)}, "document_ids has shape")],
)
def test_bad_arguments_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        kernels.ssd_scan(**make(), **changes)


def test_heads_must_divide_into_groups():
    with pytest.raises(ValueError, match="4 heads are not divisible by 3 groups"):
        kernels.ssd_scan(**make(G=3))
