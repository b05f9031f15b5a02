"""The C++ norms against the reference, forward and backward: odd sizes, views, bf16, threads, nan."""

import pytest
import torch

from nano3 import kernels

from ..conftest import assert_same, outputs_and_grads


def same(call, inputs, tolerance=2e-5):
    """The default backend equals the reference in float64."""
    wide = {k: v.double() for k, v in inputs.items()}
    assert_same(
        outputs_and_grads(lambda **x: call(**x, backend=None), inputs),
        outputs_and_grads(lambda **x: call(**x, backend="reference"), wide),
        tolerance,
    )


def rms(**options):
    return kernels.rms_norm(**options, eps=1e-5)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1, 1), (3, 7, 16), (2, 3, 35), (70, 513)])
def test_rms_norm(shape):
    same(rms, {"x": torch.randn(shape), "weight": torch.randn(shape[-1])})


@pytest.mark.parametrize(("width", "n_groups"), [(1, 1), (6, 3), (38, 2), (64, 4), (514, 2), (99, 1)])
def test_gated_rms_norm(width, n_groups):
    inputs = {"y": torch.randn(3, 23, width), "z": 3 * torch.randn(3, 23, width), "weight": torch.randn(width)}
    same(lambda **x: kernels.gated_rms_norm(**x, eps=1e-5, n_groups=n_groups), inputs)


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
def test_bf16(weight_type):
    x, z = torch.randn(2, 9, 70).bfloat16()
    weight = torch.randn(70).to(weight_type)
    same(rms, {"x": x, "weight": weight}, 1e-2)
    gated = {"y": x, "z": z, "weight": weight}
    same(lambda **x: kernels.gated_rms_norm(**x, eps=1e-5, n_groups=2), gated, 1e-2)


@pytest.mark.parametrize("view", ["slice", "steps", "heads", "transposed", "expanded", "every other"])
def test_views_are_read_where_they_lie_or_copied(view):
    wide = torch.randn(4, 6, 40, requires_grad=True)
    views = {
        "slice": lambda t: t[..., 3:24],
        "steps": lambda t: t[:, 1, 1:22],
        "heads": lambda t: t[:, :4, 3:24],
        "transposed": lambda t: t.transpose(0, 1)[..., 3:24],
        "expanded": lambda t: t[:1, :, 3:24].expand(4, 6, 21),
        "every other": lambda t: t[..., ::2],
    }
    x = views[view](wide)
    y, weight = torch.randn(x.shape, requires_grad=True), torch.randn(x.shape[-1], requires_grad=True)
    for backend in (None, "reference"):
        out = kernels.gated_rms_norm(y, x, weight, 1e-5, 1, backend=backend) + rms(x=x, weight=weight, backend=backend)
        grad = views[view](torch.linspace(-1, 1, wide.numel()).view_as(wide))
        results = [out.detach(), *torch.autograd.grad(out, [wide, y, weight], grad)]
        if backend is None:
            got = results
    assert_same(got, results, 2e-5)


def test_results_with_and_without_gradients_are_the_same():
    y, z, weight = torch.randn(5, 33), torch.randn(5, 33), torch.randn(33, requires_grad=True)
    trained = kernels.gated_rms_norm(y, z, weight, 1e-5, 3)
    with torch.inference_mode():
        assert torch.equal(kernels.gated_rms_norm(y, z, weight, 1e-5, 3), trained)
    assert trained.requires_grad


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_no_rows(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(8, requires_grad=True)
    for out in (rms(x=x, weight=weight), kernels.gated_rms_norm(x, x, weight, 1e-5, 2)):
        assert out.shape == shape
        assert not torch.autograd.grad(out.sum(), weight)[0].any()


def test_other_types_go_to_pytorch():
    y, z, weight = torch.randn(4, 12), torch.randn(4, 12).bfloat16(), torch.randn(12)
    mixed = kernels.gated_rms_norm(y, z, weight, 1e-5, 2)
    torch.testing.assert_close(mixed, kernels.gated_rms_norm(y, z, weight, 1e-5, 2, backend="reference"))
    assert rms(x=y.double(), weight=weight).dtype == torch.float64
    with pytest.raises(RuntimeError):
        kernels.gated_rms_norm(y, torch.randn(4, 11), weight, 1e-5, 2)
    with pytest.raises(RuntimeError):
        kernels.gated_rms_norm(y, y, torch.randn(11), 1e-5, 2)


def test_nan_stays_in_its_group():
    y, z = torch.randn(2, 300, 96)
    y[1, 3], z[2, 70] = torch.nan, torch.nan
    inputs = {"y": y, "z": z, "weight": torch.randn(96)}
    out, dy, dz, dweight = outputs_and_grads(lambda **x: kernels.gated_rms_norm(**x, eps=1e-5, n_groups=2), inputs)
    for t in (out, dy, dz):
        assert t[1, :48].isnan().all()
        assert t[2, 48:].isnan().all()
        assert t[1, 48:].isfinite().all()
        assert t[2, :48].isfinite().all()
        assert t[3:].isfinite().all()
    assert dweight.isnan().all()


def test_threads_agree_and_repeat():
    inputs = {"y": torch.randn(601, 64), "z": torch.randn(601, 64), "weight": torch.randn(64)}
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(outputs_and_grads(lambda **x: kernels.gated_rms_norm(**x, eps=1e-5, n_groups=2), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results[0][:3], results[1][:3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))
    assert_same(results[0], results[2], 1e-5)
