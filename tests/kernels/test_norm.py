import pytest
import torch

from nano3 import kernels


@pytest.mark.parametrize("shape", [(3, 7, 12), (12,), (1, 1, 1), (700, 384)])
def test_rms_norm_equals_reference(check, shape):
    inputs = {"x": torch.randn(shape, dtype=torch.float64), "weight": torch.randn(shape[-1], dtype=torch.float64)}
    check(kernels.rms_norm, inputs, eps=1e-5)


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_gated_rms_norm_equals_reference(check, n_groups):
    y, z = torch.randn(2, 2, 300, 24, dtype=torch.float64)
    check(kernels.gated_rms_norm, {"y": y, "z": z, "weight": torch.randn(24).double()}, eps=1e-5, n_groups=n_groups)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_gate_may_be_a_view_of_a_projection(backend):
    projected = torch.randn(2, 9, 40)
    z, y, weight = projected[..., :24], torch.randn(2, 9, 24), torch.ones(24)
    results = [kernels.gated_rms_norm(y, z, weight, 1e-5, 2, backend=b) for b in (backend, "reference")]
    torch.testing.assert_close(*results)


def test_bf16_activations_with_fp32_weight(check):
    x, z = torch.randn(2, 50, 64).bfloat16()
    weight = torch.randn(64)
    check(kernels.rms_norm, {"x": x, "weight": weight}, eps=1e-5, tolerance=1e-2)
    check(kernels.gated_rms_norm, {"y": x, "z": z, "weight": weight}, eps=1e-5, n_groups=2, tolerance=1e-2)
    assert kernels.rms_norm(x, weight, 1e-5).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", [None, "eager", "reference"])
def test_bf16_statistics_are_kept_wide(backend):
    x = torch.full((1, 4096), 1.0).bfloat16()
    torch.testing.assert_close(kernels.rms_norm(x, torch.ones(4096), 0.0, backend=backend), x)


def test_zero_input_is_finite(check):
    inputs = {"x": torch.zeros(2, 8, dtype=torch.float64), "weight": torch.ones(8, dtype=torch.float64)}
    check(kernels.rms_norm, inputs, eps=1e-5)


def test_gradcheck():
    y, z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: kernels.rms_norm(*a, 1e-5, backend="eager"), (y, weight))
    assert torch.autograd.gradcheck(lambda *a: kernels.gated_rms_norm(*a, 1e-5, 2, backend="eager"), (y, z, weight))


def test_width_must_divide_into_groups():
    with pytest.raises(ValueError, match="width 10 is not divisible by n_groups 4"):
        kernels.gated_rms_norm(torch.ones(2, 10), torch.ones(2, 10), torch.ones(10), 1e-5, 4)
