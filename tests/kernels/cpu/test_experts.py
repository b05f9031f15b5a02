"""Experts and squared-ReLU MLPs of many rows, forward and backward: the C++ backend against the reference."""

import pytest
import torch
from nano3.kernels.cpu import experts, mlp, products

from nano3 import kernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
MIXTURES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


@pytest.fixture(params=[7, 1024])
def piece(request, monkeypatch):
    """Few rows a product, so that small cases have several, and as many as in use."""
    monkeypatch.setattr(products, "PIECE", request.param)


def make(S, x_dtype=torch.float32, w_dtype=torch.float32, E=6, F=21, D=19):
    return [torch.randn(S, D).to(x_dtype), torch.randn(E, F, D).to(w_dtype), torch.randn(E, D, F).to(w_dtype)]


def routing(S, K=3, E=6, uneven=False):
    ids = (torch.rand(S, E) + torch.linspace(4, 0, E) * uneven).topk(K).indices
    return ids, torch.rand(S, K)


def run(op, leaves, backend, wide=False):
    """Result and gradients, in float32 throughout where `wide`: what bfloat16 is measured against."""
    leaves = [
        (leaf.float() if wide else leaf.detach().clone()).requires_grad_(leaf.is_floating_point()) for leaf in leaves
    ]
    y = op(*leaves, backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def compare(op, leaves):
    got, expected = run(op, leaves, None), run(op, leaves, "reference", wide=True)
    for g, e, like in zip(got, expected, [leaves[0], *leaves], strict=True):
        assert g.dtype == like.dtype
        assert g.is_contiguous()
        tolerance = TOLERANCE[leaves[0].dtype if g.dtype == torch.float32 else torch.bfloat16]
        assert float((g.float() - e).norm()) <= tolerance * float(e.norm().clamp_min(1e-6))
    return got


def grouped(ids):
    return lambda x, up, down, weights, backend: kernels.grouped_mlp(x, up, down, ids, weights, backend=backend)


def dense(x, up, down, backend):
    return kernels.squared_relu_mlp(x, up, down, backend=backend)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), MIXTURES)
@pytest.mark.parametrize(("S", "uneven"), [(1, False), (64, False), (65, True), (150, True)])
def test_experts(piece, S, x_dtype, w_dtype, uneven):
    ids, weights = routing(S, uneven=uneven)
    compare(grouped(ids), [*make(S, x_dtype, w_dtype), weights])


@pytest.mark.parametrize(("F", "D"), [(1, 1), (16, 32), (33, 17), (8, 70)])
def test_experts_of_odd_sizes(F, D):
    ids, weights = routing(90)
    compare(grouped(ids), [*make(90, F=F, D=D), weights])


@pytest.mark.parametrize("E", [1, 3])
def test_every_expert_for_every_token(E):
    ids, weights = routing(80, K=E, E=E)
    compare(grouped(ids), [*make(80, E=E), weights])


def test_experts_without_tokens_get_zero_gradients(piece):
    ids, (_, weights) = torch.tensor([[4, 1]]).repeat(70, 1), routing(70, K=2)
    _, _, dup, ddown, _ = compare(grouped(ids), [*make(70), weights])
    for grad in (dup, ddown):
        assert [e for e in range(6) if grad[e].any()] == [1, 4]


@pytest.mark.parametrize("x_dtype", TOLERANCE)
def test_bf16_weights_under_other_activations_without_gradients(piece, x_dtype):
    (x, up, down), (ids, weights) = make(100, x_dtype, torch.bfloat16), routing(100)
    with torch.inference_mode():
        for wide, y in (
            (kernels.grouped_mlp(x.float(), up.float(), down.float(), ids, weights, backend="reference"),
             kernels.grouped_mlp(x, up, down, ids, weights)),
            (kernels.squared_relu_mlp(x.float(), up[0].float(), down[0].float(), backend="reference"),
             kernels.squared_relu_mlp(x, up[0], down[0])),
        ):  # fmt: skip
            assert y.dtype == x_dtype
            assert float((y.float() - wide).norm()) <= TOLERANCE[x_dtype] * float(wide.norm())


def test_views(piece):
    ids, weights = routing(140)
    x, up, down = torch.randn(280, 40)[::2, 3:22], torch.randn(6, 19, 21).transpose(1, 2), torch.randn(6, 19, 21)
    for leaves in ([x, down.transpose(1, 2).contiguous(), down, weights], [x, up, down, weights]):
        got = grouped(ids.t().contiguous().t())(*leaves, None)
        torch.testing.assert_close(got, grouped(ids)(*leaves, "reference"), rtol=1e-4, atol=1e-3)
        got = dense(x.unflatten(0, (2, 70)), leaves[1][0], down[0], None)
        torch.testing.assert_close(
            got.flatten(0, 1), dense(x, leaves[1][0], down[0], "reference"), rtol=1e-4, atol=1e-3
        )
    x = torch.randn(70, 19, requires_grad=True)
    grouped(ids[:70])(x, leaves[1], down, weights[:70], None).sum().backward()  # an expanded gradient
    expected = torch.autograd.grad(grouped(ids[:70])(x, leaves[1], down, weights[:70], "reference").sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("wanted", range(4))
def test_a_gradient_for_one_argument_alone(wanted):
    (x, up, down), (ids, weights) = make(70), routing(70)
    everything = run(grouped(ids), [x, up, down, weights], None)[1:]
    leaves = [leaf.clone().requires_grad_(i == wanted) for i, leaf in enumerate((x, up, down, weights))]
    y = grouped(ids)(*leaves, None)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    assert torch.equal(torch.autograd.grad(y, leaves[wanted], dy)[0], everything[wanted])
    if wanted < 3:
        leaves = [leaf.clone().requires_grad_(i == wanted) for i, leaf in enumerate((x, up[0], down[0]))]
        y, full = dense(*leaves, None), run(dense, [x, up[0], down[0]], None)
        assert torch.equal(torch.autograd.grad(y, leaves[wanted], dy)[0], full[1 + wanted])


@pytest.mark.parametrize(("x_dtype", "w_dtype"), MIXTURES)
@pytest.mark.parametrize("shape", [(1,), (40,), (2, 50)])
def test_squared_relu_mlp(piece, shape, x_dtype, w_dtype):
    _, up, down = make(1, w_dtype=w_dtype)
    compare(dense, [torch.randn(*shape, 19).to(x_dtype), up[0], down[0]])


def test_products_in_bf16(piece, monkeypatch):
    """As on processors with instructions for them."""
    for module in (experts, mlp):
        monkeypatch.setattr(module, "matmul_dtype", lambda dtype, _device: dtype)
    ids, weights = routing(150)
    for leaves, op in (
        ([*make(150, torch.bfloat16), weights], grouped(ids)),
        ([m[0] if i else m for i, m in enumerate(make(150, torch.bfloat16))], dense),
    ):
        for got, expected in zip(run(op, leaves, None), run(op, leaves, "reference", wide=True), strict=True):
            assert float((got.float() - expected).norm()) <= 2e-2 * float(expected.norm())


def test_nan_stays_with_its_token(piece):
    (x, up, down), (ids, weights) = make(90), routing(90)
    x[7, 3] = torch.nan
    others = torch.arange(90) != 7
    for op, leaves in ((grouped(ids), [x, up, down, weights]), (dense, [x, up[0], down[0]])):
        y, dx, dup, ddown = run(op, leaves, None)[:4]
        assert y[7].isnan().all()
        assert dx[7].isnan().all()
        assert y[others].isfinite().all()
        assert dx[others].isfinite().all()
        assert dup.isnan().any()
        assert ddown.isnan().any()


def test_no_tokens():
    x, up, down = make(0)
    y = grouped(torch.empty(0, 2, dtype=torch.int64))(x.requires_grad_(), up, down, torch.empty(0, 2), None)
    assert y.shape == (0, 19)
    assert dense(x, up[0], down[0], None).shape == (0, 19)


@pytest.mark.parametrize("S", [5, 70, 3000])
def test_an_expert_chosen_twice_by_a_token_counts_twice(S):
    """Bad input, which must be no race: the same result on any number of threads."""
    (x, up, down), (ids, weights) = make(S, E=3), routing(S, E=3)
    ids[::2, 1] = ids[::2, 0]
    ids[1] = 2
    compare(grouped(ids), [x, up, down, weights])
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 7):
            torch.set_num_threads(count)
            found.append(kernels.grouped_mlp(x, up, down, ids, weights))
    finally:
        torch.set_num_threads(before)
    # PyTorch's products turn on the threads in their last bits; a choice lost or counted thrice would be far off.
    torch.testing.assert_close(*found, rtol=0, atol=1e-4 * float(found[0].detach().abs().max()))


def test_the_number_of_threads_changes_nothing_around_the_products():
    """Small sizes, whose products PyTorch computes on one thread."""
    (x, up, down), (ids, weights) = make(100, F=5, D=6), routing(100)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(grouped(ids), [x, up, down, weights], None))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 70])
def test_what_does_not_fit_is_an_error(rows):
    (x, up, down), (ids, weights) = make(rows), routing(rows)
    for wrong in (6, -1, 2**40):
        bad = ids.clone()
        bad[-1, -1] = wrong
        with pytest.raises((IndexError, RuntimeError)):
            grouped(bad)(x.clone().requires_grad_(), up, down, weights, None)
    for arguments in ((x[:, :5], up, down), (x, up[:, :, :5], down), (x, up, down[:, :, :5])):
        with pytest.raises((IndexError, RuntimeError)):
            grouped(ids)(*arguments, weights, None)
        with pytest.raises((IndexError, RuntimeError)):
            dense(arguments[0].clone().requires_grad_(), arguments[1][0], arguments[2][0], None)
