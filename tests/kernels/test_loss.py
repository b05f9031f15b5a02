from types import SimpleNamespace

import pytest
import torch
from nano3.kernels.eager.loss import default_chunk, logits_bytes

from nano3 import kernels


@pytest.fixture(params=["eager", None], ids=["eager", "default"])
def backend(request):
    """PyTorch's formulation, and what runs by default: C++ where its library is."""
    return request.param


def make(S=37, D=6, V=19, dtype=torch.float64):
    return {"hidden": torch.randn(S, D, dtype=dtype), "weight": torch.randn(V, D).to(dtype)}


def make_targets(S=37, V=19, ignored=0.3):
    targets = torch.randint(0, V, (S,))
    targets[torch.rand(S) < ignored] = -100
    return targets


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 37, 100])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_loss_equals_reference(check, chunk_size, ignored):
    check(kernels.linear_cross_entropy, make(), targets=make_targets(ignored=ignored), chunk_size=chunk_size)


def test_another_ignore_index(check):
    targets = make_targets(ignored=0.0)
    check(kernels.linear_cross_entropy, make(), targets=targets, ignore_index=int(targets[0]))


def test_bf16_hidden_with_fp32_weight(check):
    inputs = make(dtype=torch.float32)
    inputs["hidden"] = inputs["hidden"].bfloat16()
    check(kernels.linear_cross_entropy, inputs, targets=make_targets(), tolerance=2e-2)
    assert kernels.linear_cross_entropy(**inputs, targets=make_targets()).dtype == torch.float32


def test_large_logits_are_stable(check):
    inputs = make()
    inputs["hidden"] = inputs["hidden"] * 1000
    check(kernels.linear_cross_entropy, inputs, targets=make_targets(), chunk_size=8)


def test_gradients_scale_with_the_loss(backend):
    inputs, targets = make(), make_targets()
    grads = []
    for factor in (1.0, 0.25):
        hidden = inputs["hidden"].clone().requires_grad_()
        (kernels.linear_cross_entropy(hidden, inputs["weight"], targets, backend=backend) * factor).backward()
        grads.append(hidden.grad)
    torch.testing.assert_close(grads[0] * 0.25, grads[1])


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_a_factor_that_bfloat16_cannot_hold_scales_bfloat16_gradients(backend, weight_dtype):
    """1 / targets of a batch, which rounded to bfloat16 would make all gradients too large or too small together."""
    inputs, targets, factor = make(S=64, D=32, V=50, dtype=torch.float32), make_targets(64, 50), 1 / 1019
    assert abs(float(torch.tensor(factor).bfloat16()) / factor - 1) > 2.8e-3
    hidden = inputs["hidden"].bfloat16().requires_grad_()
    weight = inputs["weight"].to(weight_dtype).requires_grad_()
    (kernels.linear_cross_entropy(hidden, weight, targets, backend=backend) * factor).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    (kernels.linear_cross_entropy(*exact, targets, backend="reference") * factor).backward()
    for narrow, reference in zip((hidden, weight), exact, strict=True):
        got, expected = narrow.grad.double().flatten(), reference.grad.flatten()
        most = 2e-3 if narrow.dtype == torch.bfloat16 else 5e-4  # numbers that are rounded once, for any factor
        assert abs(float(got @ expected / (expected @ expected)) - 1) < most


@pytest.mark.parametrize("trained", ["hidden", "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_frozen_side(trained, dtype):
    inputs, targets = make(dtype=dtype), make_targets()
    results = []
    for backend in ("reference", "eager", None):
        leaves = {k: v.clone().requires_grad_(k == trained) for k, v in inputs.items()}
        kernels.linear_cross_entropy(**leaves, targets=targets, backend=backend).backward()
        results.append([leaf.grad for leaf in leaves.values() if leaf.grad is not None])
    assert [len(r) for r in results] == [1, 1, 1]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_logits_of_all_tokens_never_exist(largest_tensor, backend):
    S, D, V = 512, 4, 300
    inputs = make(S, D, V, torch.float32)
    inputs["hidden"].requires_grad_()
    inputs["weight"].requires_grad_()
    targets = make_targets(S, V)
    with largest_tensor() as seen:
        kernels.linear_cross_entropy(**inputs, targets=targets, chunk_size=64, backend=backend).backward()
    assert 64 * V <= seen.elements < S * V // 4


def test_no_weight_gradient_is_made_without_need(largest_tensor, backend):
    inputs = make(8, 64, 2000, torch.float32)
    inputs["weight"].requires_grad_()
    with largest_tensor() as seen, torch.no_grad():
        kernels.linear_cross_entropy(**inputs, targets=make_targets(8, 2000), backend=backend)
    assert seen.elements <= 8 * 2000


def test_loss_is_the_sum_of_the_log_probabilities(backend):
    inputs, targets = make(), make_targets()
    found = kernels.log_probs(**inputs, targets=targets, backend=backend)
    torch.testing.assert_close(-found.sum(), kernels.linear_cross_entropy(**inputs, targets=targets, backend=backend))


def test_second_backward_says_why_it_fails(backend):
    inputs = make(dtype=torch.float32)
    hidden = inputs["hidden"].requires_grad_()
    loss = kernels.linear_cross_entropy(hidden, inputs["weight"], make_targets(), backend=backend)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        loss.backward()


@pytest.mark.parametrize(("gigabytes", "rows"), [(141, 4096), (80, 2384), (24, 715), (2, 128)])
def test_a_gpus_chunks_follow_its_memory(monkeypatch, gigabytes, rows):
    """Of a vocabulary of 131,072: from as many rows as a CPU's up to 4,096."""
    device = torch.device("cuda", 0)
    facts = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    logits_bytes.cache_clear()
    try:
        assert default_chunk(4 * 131072, device) == rows
        facts.total_memory *= 2  # looked at once a process
        assert default_chunk(4 * 131072, device) == rows
    finally:
        logits_bytes.cache_clear()
    assert default_chunk(4 * 131072, torch.device("cpu")) == 128
