"""Cross-entropy with the softmax in C++ equal the reference, gradients included."""

from functools import partial

import pytest
import torch
from nano3.kernels.cpu.native import native

from nano3 import kernels
from tests.kernels.conftest import assert_same, outputs_and_grads


def make(S, D, V, dtype=torch.float32, weight_dtype=None):
    return {"hidden": torch.randn(S, D).to(dtype), "weight": torch.randn(V, D).to(weight_dtype or dtype)}


def make_targets(S, V, ignored=0.0):
    targets = torch.randint(0, V, (S,))
    targets[torch.rand(S) < ignored] = -100
    return targets


def compare(inputs, targets, tolerance=1e-5, **options):
    def results(backend):
        call = partial(kernels.linear_cross_entropy, targets=targets, backend=backend, **options)
        return outputs_and_grads(call, inputs)

    assert_same(results(None), results("reference"), tolerance)


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 37])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("V", [1, 15, 64, 131])
def test_loss_and_gradients(V, ignored, chunk_size):
    compare(make(37, 6, V), make_targets(37, V, ignored), chunk_size=chunk_size)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("narrow_products", [False, True])
def test_bf16_hidden(monkeypatch, weight_dtype, narrow_products):
    """Products in float32, and in bfloat16 as on machines with instructions for them."""
    product = torch.bfloat16 if narrow_products else torch.float32
    monkeypatch.setattr("nano3.kernels.cpu.loss.matmul_dtype", lambda dtype, device: product)
    inputs = make(37, 16, 70, torch.bfloat16, weight_dtype)
    for chunk_size in (None, 8):
        compare(inputs, make_targets(37, 70, 0.2), 1e-2, chunk_size=chunk_size)


def test_fp32_hidden_with_bf16_weight():
    compare(make(12, 16, 70, torch.float32, torch.bfloat16), make_targets(12, 70), 1e-2)


def test_views_of_any_layout():
    inputs, targets = make(40, 22, 38), make_targets(80, 19)[::2]
    views = {"hidden": inputs["hidden"][:, ::2], "weight": inputs["weight"].t()[:11].t()[::2]}
    expected = kernels.linear_cross_entropy(**views, targets=targets, backend="reference")
    torch.testing.assert_close(kernels.linear_cross_entropy(**views, targets=targets), expected)


def test_nothing_at_all():
    inputs = {k: v.requires_grad_() for k, v in make(0, 6, 9).items()}
    targets = torch.empty(0, dtype=torch.int64)
    loss = kernels.linear_cross_entropy(**inputs, targets=targets)
    loss.backward()
    assert loss == 0
    assert torch.equal(inputs["weight"].grad, torch.zeros(9, 6))


def test_large_logits_are_stable():
    inputs = make(37, 6, 100)
    inputs["hidden"] *= 1000
    compare(inputs, make_targets(37, 100), 1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_like_in_pytorch(value):
    inputs, targets = make(5, 3, 40), make_targets(5, 40)
    inputs["weight"] = inputs["weight"].abs()
    inputs["hidden"][2, 1] = value
    results = []
    for backend in ("eager", None):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        loss = kernels.linear_cross_entropy(**leaves, targets=targets, backend=backend)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves.values())])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())
    assert not results[1][0].isfinite()


@pytest.mark.parametrize("target", [-1, 40])
def test_targets_outside_the_vocabulary_are_an_error(target):
    targets = torch.tensor([3, target, 5])
    with pytest.raises((IndexError, RuntimeError)):
        kernels.linear_cross_entropy(**make(3, 4, 40), targets=targets)


@pytest.mark.parametrize("scale", [200.0, 0.1])
@pytest.mark.parametrize("outputs", [50, 128])
def test_gradients_hold_no_subnormal_numbers(outputs, scale):
    """Logits from -200 to 200; a small hidden value makes a product with a tiny probability smaller still."""
    hidden = torch.tensor([[scale], [0.0]], requires_grad=True)
    weight = (torch.linspace(-200, 200, outputs) / scale).unsqueeze(1).requires_grad_()
    kernels.linear_cross_entropy(hidden, weight, torch.tensor([outputs - 1, 3])).backward()
    grads = weight.grad[weight.grad != 0].abs()
    assert grads.min() > torch.finfo(torch.float32).tiny


def test_results_do_not_depend_on_the_number_of_threads():
    inputs, targets = make(50, 8, 300), make_targets(50, 300)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(kernels.linear_cross_entropy(**inputs, targets=targets))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results)


@pytest.mark.skipif(native().library is None, reason="of the C++ kernel alone")
def test_what_lives_until_backward_is_one_chunk_and_no_other_weight(monkeypatch):
    """Numbers held from forward to backward: the gradients and the last chunk, of a size like the others'."""
    monkeypatch.setattr("nano3.kernels.cpu.loss.LOGITS_BYTES", 32 * 70 * 4)
    monkeypatch.setattr("nano3.kernels.cpu.loss.matmul_dtype", lambda dtype, device: torch.float32)
    leaves = {k: v.requires_grad_() for k, v in make(36, 16, 70, torch.bfloat16).items()}
    loss = kernels.linear_cross_entropy(**leaves, targets=make_targets(36, 70))
    grads = getattr(loss.grad_fn, "grads", None)
    if grads is None:  # PyTorch alone
        return
    held = [t for value in vars(grads).values() for t in (value if isinstance(value, tuple) else (value,))]
    numbers = {t.untyped_storage().nbytes() // t.itemsize for t in held if isinstance(t, torch.Tensor)}
    assert numbers == {36 * 16, 70 * 16, 18 * 70, 18 * 16}
    assert not any(hasattr(value, "weight") for value in vars(grads).values())
