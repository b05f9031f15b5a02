"""The router: every backend against the reference, forward and backward; equal scores, nan, types, views, threads."""

import pytest
import torch

from nano3 import kernels

BACKENDS = [None, "eager"]  # None: C++ where it is built
ROWS = [1, 3, 64, 65, 150]


def make(S, D=19, E=21, x_dtype=torch.float32):
    return torch.randn(S, D).to(x_dtype), torch.randn(E, D), torch.randn(E)


def results(arguments, backend, use=(1, 2)):
    """(expert_ids, weights, scores, gradients of x and weight of a fixed mixture of the results `use`)."""
    x, weight, bias, top_k, scale = arguments
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    out = kernels.route(x, weight, bias, top_k, scale, backend=backend)
    total = sum((out[i] * torch.linspace(-1, 1, out[i].numel()).view_as(out[i])).sum() for i in use)
    return *(o.detach() for o in out), *torch.autograd.grad(total, (x, weight))


def assert_close(got, expected, tolerance=2e-5):
    assert torch.equal(got[0], expected[0])
    for a, e in zip(got[1:], expected[1:], strict=True):
        assert a.dtype == e.dtype
        assert a.is_contiguous()
        assert float((a - e).abs().max()) <= tolerance * float(e.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("experts", "top_k", "width"), [(21, 3, 19), (16, 16, 32), (1, 1, 1), (130, 6, 7)])
def test_equals_reference(backend, rows, experts, top_k, width):
    arguments = *make(rows, width, experts), top_k, 2.5
    assert_close(results(arguments, backend), results(arguments, "reference"))
    with torch.inference_mode():
        plain = [kernels.route(*arguments, backend=name) for name in (backend, "reference")]
    assert_close(*plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use", [(1,), (2,)])
def test_gradients_through_either_result_alone(backend, use):
    arguments = *make(70), 4, 1.0
    assert_close(results(arguments, backend, use), results(arguments, "reference", use))


def test_double_precision_and_gradcheck():
    x, weight, bias = (t.double().requires_grad_(i < 2) for i, t in enumerate(make(4, 5, 6)))
    for backend in BACKENDS:
        run = lambda x, w, backend=backend: kernels.route(x, w, bias, 2, 2.5, backend=backend)[1:]  # noqa: E731
        assert run(x, weight)[0].dtype == torch.float64
        assert torch.autograd.gradcheck(run, (x, weight))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ROWS)
def test_bf16_tokens_are_scored_in_fp32(backend, rows):
    x, weight, bias = make(rows, x_dtype=torch.bfloat16)
    got, expected = (results((x, weight, bias, 3, 2.5), name) for name in (backend, "reference"))
    assert got[1].dtype == got[2].dtype == torch.float32
    assert got[3].dtype == torch.bfloat16
    assert_close(got[:3] + got[4:], expected[:3] + expected[4:])
    torch.testing.assert_close(got[3].float(), expected[3].float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", ROWS)
def test_equal_scores_take_the_lowest_expert(rows):
    x, weight = torch.randn(rows, 8), torch.zeros(9, 8)
    bias = torch.tensor([0.0, 1, 0, 2, 1, 0, 0, 2, 0])
    for backend in {"reference", kernels.choose("route", "cpu")[0]} - {"eager"}:
        ids, weights, _ = kernels.route(x, weight, torch.zeros(9), 4, 2.0, backend=backend)
        assert torch.equal(ids, torch.arange(4).expand(rows, 4))
        assert torch.equal(weights, torch.full((rows, 4), 0.5))
        ids = kernels.route(x, weight, bias, 4, 2.0, backend=backend)[0]
        assert torch.equal(ids, torch.tensor([3, 7, 1, 4]).expand(rows, 4))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ROWS)
def test_nan_reaches_the_weights_of_its_token_only(backend, rows):
    x, weight, bias = make(rows)
    x[0, 3] = torch.nan
    ids, weights, scores = kernels.route(x, weight, bias, 5, 1.0, backend=backend)
    assert weights[0].isnan().all()
    assert scores[0].isnan().all()
    assert ids[0].unique().numel() == 5
    assert 0 <= ids.min() <= ids.max() < 21
    assert weights[1:].isfinite().all()
    for broken in (4, 20):  # a broken expert is seen, not passed over
        spoilt = weight.clone()
        spoilt[broken] = torch.nan
        assert kernels.route(x, spoilt, bias, 5, 1.0, backend=backend)[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_scores_and_biases(backend):
    weight = torch.tensor([[1000.0], [-1000], [80], [-80], [0]])
    bias = torch.tensor([-torch.inf, 0.0, -torch.inf, 0, -torch.inf])
    ids, weights, scores = kernels.route(torch.ones(2, 1), weight, bias, 5, 1.0, backend=backend)
    assert torch.equal(ids.sort().values, torch.arange(5).expand(2, 5))
    assert weights.isfinite().all()
    torch.testing.assert_close(scores[0], torch.tensor([1.0, 0, 1, 0, 0.5]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_no_tokens(backend):
    x, weight, bias = torch.randn(140, 40)[::2, 3:22], torch.randn(19, 21).t(), torch.randn(42)[::2]
    for rows in (x, x[:5]):
        arguments = rows, weight, bias, 3, 2.5
        assert_close(kernels.route(*arguments, backend=backend), kernels.route(*arguments, backend="reference"))
    ids, weights, scores = kernels.route(x[:0], weight, bias, 3, 2.5, backend=backend)
    assert (ids.shape, weights.shape, scores.shape) == ((0, 3), (0, 3), (0, 21))


def test_the_number_of_threads_changes_nothing():
    x, weight, bias = make(64, 300, 40)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(kernels.route(x, weight, bias, 4, 1.0))
    finally:
        torch.set_num_threads(before)
    exact = kernels.choose("route", "cpu")[0] == "cpu"  # PyTorch's products may turn on the threads
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b) if exact else torch.allclose(a, b, atol=1e-5)


def test_more_chosen_experts_than_there_are():
    x, weight, bias = make(3)
    with pytest.raises(ValueError, match="only 21 experts"):
        kernels.route(x, weight, bias, 22, 1.0)
    with pytest.raises(RuntimeError):
        kernels.route(x, weight[:, :5], bias, 2, 1.0)
