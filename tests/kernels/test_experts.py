import pytest
import torch
from nano3.kernels.eager import grouped
from nano3.kernels.eager.grouped import GroupedExperts
from nano3.kernels.narrow import kept

from nano3 import kernels

BACKENDS = [None, "eager", "reference"]
"""None: the one that runs float32 on this machine."""


def make(S=31, D=6, F=5, E=7, dtype=torch.float64):
    return {
        "x": torch.randn(S, D, dtype=dtype),
        "up": torch.randn(E, F, D).to(dtype),
        "down": torch.randn(E, D, F).to(dtype),
    }


def choose_experts(S=31, K=3, E=7, dtype=torch.float64):
    return torch.rand(S, E).topk(K).indices, torch.rand(S, K, dtype=dtype)


def test_linear_equals_reference(check):
    inputs = {"x": torch.randn(2, 3, 5, dtype=torch.float64), "weight": torch.randn(4, 5, dtype=torch.float64)}
    check(kernels.linear, inputs)
    check(kernels.linear, {"x": inputs["x"].bfloat16(), "weight": inputs["weight"].float()}, tolerance=1e-2)


def test_squared_relu_mlp_equals_reference(check):
    inputs = {
        "x": torch.randn(2, 9, 5, dtype=torch.float64),
        "up": torch.randn(7, 5, dtype=torch.float64),
        "down": torch.randn(5, 7, dtype=torch.float64),
    }
    check(kernels.squared_relu_mlp, inputs)
    mixed = {k: v.float() if k != "x" else v.bfloat16() for k, v in inputs.items()}
    check(kernels.squared_relu_mlp, mixed, tolerance=2e-2)


@pytest.mark.parametrize(("S", "K", "E"), [(31, 3, 7), (1, 1, 7), (8, 7, 7), (40, 2, 1)])
def test_grouped_mlp_equals_reference(check, S, K, E):
    K = min(K, E)
    ids, weights = choose_experts(S, K, E)
    check(kernels.grouped_mlp, {**make(S=S, E=E), "weights": weights}, expert_ids=ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("S", [31, 100])
def test_grouped_mlp_equals_each_token_alone(backend, S):
    inputs, (ids, weights) = make(S, dtype=torch.float32), choose_experts(S, dtype=torch.float32)
    out = kernels.grouped_mlp(**inputs, expert_ids=ids, weights=weights, backend=backend)
    for token in range(S):
        parts = [
            w * kernels.squared_relu_mlp(inputs["x"][token], inputs["up"][e], inputs["down"][e], backend=backend)
            for e, w in zip(ids[token].tolist(), weights[token], strict=True)
        ]
        torch.testing.assert_close(out[token], sum(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("S", [5, 100])
def test_squared_relu_mlp_is_two_products_and_a_square(backend, S):
    x, up, down = torch.randn(S, 6), torch.randn(9, 6), torch.randn(6, 9)
    expected = (x.double() @ up.double().T).relu().square() @ down.double().T
    got = kernels.squared_relu_mlp(x, up, down, backend=backend)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


def test_experts_without_tokens_get_zero_gradients(check):
    inputs, weights = make(), torch.rand(31, 2, dtype=torch.float64)
    ids = torch.tensor([[4, 1]]).expand(31, 2)
    check(kernels.grouped_mlp, {**inputs, "weights": weights}, expert_ids=ids)
    for backend in BACKENDS:
        leaves = {k: v.float().requires_grad_() for k, v in inputs.items()}
        kernels.grouped_mlp(**leaves, expert_ids=ids, weights=weights.float(), backend=backend).sum().backward()
        for name in ("up", "down"):
            assert [e for e in range(7) if leaves[name].grad[e].any()] == [1, 4], backend


def test_bf16_activations_with_fp32_weights(check):
    inputs = {k: v.float() for k, v in make(D=16, F=16).items()}
    inputs["x"] = inputs["x"].bfloat16()
    ids, weights = choose_experts(dtype=torch.float32)
    check(kernels.grouped_mlp, {**inputs, "weights": weights}, expert_ids=ids, tolerance=2e-2)
    for backend in BACKENDS:
        out = kernels.grouped_mlp(**inputs, expert_ids=ids, weights=weights, backend=backend)
        assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("garbage", [False, True])
def test_grouped_products_equal_the_loop(garbage, monkeypatch):
    """The formulation CUDA runs, here on CPU (sizes are multiples of 16 bytes, as its kernels ask); `garbage`: with
    what Blackwell's leave in products of no rows."""
    inputs, (ids, weights) = make(D=8, F=16, dtype=torch.float32), choose_experts(dtype=torch.float32)
    ids = ids.clamp_max(5)  # expert 6 stays empty
    ids[:, 1:] = (ids[:, :1] + torch.tensor([1, 2])) % 6
    if garbage:
        multiply = torch.nn.functional.grouped_mm

        def leave(a, b, *, offs):
            out = multiply(a, b, offs=offs)
            return out.index_fill(0, torch.tensor(6), 7.0) if b.dim() == 2 else out

        monkeypatch.setattr(torch.nn.functional, "grouped_mm", leave)
        monkeypatch.setattr(grouped, "leaves_unused", lambda device: True)
    results = []
    for function in (GroupedExperts.apply, lambda *a: kernels.grouped_mlp(*a, backend="reference")):
        leaves = [v.clone().requires_grad_() for v in (*inputs.values(), weights)]
        out = function(*leaves[:3], ids, leaves[3])
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("D", "F"), [(8, 16), (8, 12), (6, 16), (4, 20)])
def test_sizes_that_grouped_products_refuse_are_looped_over(D, F, dtype):
    """Which PyTorch says itself; the loop asks for numbers, which the meta device has none of."""
    inputs, (ids, weights) = make(D=D, F=F, dtype=dtype), choose_experts(dtype=torch.float32)
    try:
        GroupedExperts.apply(*inputs.values(), ids, weights)
        taken = True
    except RuntimeError:
        taken = False
    assert grouped.takes_grouped(dtype, D, F) == taken
    away = [v.to("meta") for v in (*inputs.values(), ids, weights)]
    if not taken:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
            kernels.grouped_mlp(*away, backend="eager")
    elif dtype == torch.bfloat16:  # the only type that grouped_mm has there
        assert kernels.grouped_mlp(*away, backend="eager").shape == (31, D)


def test_frozen_experts_cost_no_products_for_their_gradients(monkeypatch):
    inputs, (ids, weights) = make(D=8, F=16, dtype=torch.float32), choose_experts(dtype=torch.float32)
    multiply, found, counts = torch.nn.functional.grouped_mm, [], []

    def counted(*args, **options):
        counts[-1] += 1
        return multiply(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    for frozen in ((), ("up",), ("up", "down")):
        counts.append(0)
        leaves = {k: v.clone().requires_grad_(k not in frozen) for k, v in inputs.items()}
        GroupedExperts.apply(*leaves.values(), ids, weights).square().sum().backward()
        assert [leaf.grad is None for leaf in leaves.values()] == [k in frozen for k in leaves]
        found.append(leaves["x"].grad)
    assert counts == [6, 5, 4]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("frozen", [False, True])
def test_inputs_of_a_frozen_weight_are_not_kept(frozen):
    x, saved = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True), []
    weight = torch.nn.Parameter(torch.randn(6, 8), requires_grad=not frozen)
    with kept([weight]), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        y = kernels.linear(x, weight, backend="eager")
    assert (x.shape in saved) == (not frozen)
    y.backward(torch.ones_like(y))
    expected = torch.ones(5, 6).bfloat16() @ weight.detach().bfloat16()
    torch.testing.assert_close(x.grad, expected, rtol=2e-2, atol=2e-2)


def test_grouped_products_need_no_values_from_the_device():
    """On the meta device nothing has a value, so whatever would make the CPU wait for a GPU fails."""
    inputs, (ids, weights) = make(D=8, F=16, dtype=torch.bfloat16), choose_experts(dtype=torch.float32)
    leaves = [v.to("meta").requires_grad_() for v in (*inputs.values(), weights)]
    out = GroupedExperts.apply(*leaves[:3], ids.to("meta"), leaves[3])
    grads = torch.autograd.grad(out.sum(), leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]


def test_gradcheck():
    inputs, (ids, weights) = make(S=4, D=3, F=2, E=3), choose_experts(4, 2, 3)
    leaves = [v.requires_grad_() for v in (*inputs.values(), weights)]
    run = kernels.choose("grouped_mlp", "cpu", "eager")[1]
    assert torch.autograd.gradcheck(lambda x, up, down, w: run(x, up, down, ids, w), leaves)
    assert torch.autograd.gradcheck(
        lambda x, up, down: kernels.squared_relu_mlp(x, up[0], down[0], backend="eager"), leaves[:3]
    )
