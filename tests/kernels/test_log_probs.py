"""Differentiable log-probabilities and entropies of tokens equal the reference, gradients included."""

import pytest
import torch

from nano3 import kernels
from tests.kernels.conftest import assert_same, outputs_and_grads

BACKENDS = [pytest.param("eager", id="eager"), pytest.param(None, id="default")]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def make(S=37, D=6, V=19, dtype=torch.float32, weight_dtype=None):
    return {"hidden": torch.randn(S, D).to(dtype), "weight": torch.randn(V, D).to(weight_dtype or dtype)}


def make_targets(S=37, V=19, ignored=0.3):
    targets = torch.randint(0, V, (S,))
    targets[torch.rand(S) < ignored] = -100
    return targets


def compare(inputs, targets, backend, tolerance, **options):
    """Outputs and gradients against those of the reference in float64."""

    def results(backend, values):
        return outputs_and_grads(
            lambda **leaves: kernels.log_probs(**leaves, targets=targets, backend=backend, **options), values
        )

    assert_same(results(backend, inputs), results("reference", {k: v.double() for k, v in inputs.items()}), tolerance)


SIZES = [(37, 6, 19, 0.3), (1, 1, 1, 0.0), (64, 33, 131, 0.0), (9, 5, 70, 1.0)]


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 8, 100])
@pytest.mark.parametrize(("S", "D", "V", "ignored"), SIZES)
def test_equals_reference(backend, S, D, V, ignored, chunk_size, entropy):
    inputs, targets = make(S, D, V), make_targets(S, V, ignored)
    compare(inputs, targets, backend, 1e-5, chunk_size=chunk_size, entropy=entropy, temperature=0.7)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3])
def test_float64(backend, temperature):
    compare(make(dtype=torch.float64), make_targets(), backend, 1e-10, entropy=True, temperature=temperature)


@pytest.mark.parametrize(("S", "D", "V"), [(70, 16, 70), (33, 33, 300), (5, 100, 1031), (1, 40, 3)])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_logits_of_bf16_numbers_are_not_rounded(backend, weight_dtype, S, D, V):
    """Results are as exact as from float32 numbers of the same values; gradients are bfloat16 products."""
    inputs, targets = make(S, D, V, torch.bfloat16, weight_dtype), make_targets(S, V)
    rounded = {k: v.bfloat16().float() for k, v in inputs.items()}

    def call(backend, **values):
        return kernels.log_probs(**values, targets=targets, entropy=True, temperature=0.8, backend=backend)

    got, expected = call(backend, **inputs), call("reference", **{k: v.double() for k, v in rounded.items()})
    assert [t.dtype for t in got] == [torch.float32] * 2
    assert_same(list(got), list(expected), 5e-6)
    grads = [
        outputs_and_grads(lambda b=b, **leaves: call(b, **leaves), values)
        for b, values in ((backend, inputs), ("reference", rounded))
    ]
    assert_same(*grads, 1e-2)


def test_ignored_targets_get_zero_and_no_gradient(backend):
    inputs, targets = make(), make_targets(ignored=0.0)
    targets[:5] = 7
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    found, entropy = kernels.log_probs(**leaves, targets=targets, entropy=True, ignore_index=7, backend=backend)
    (found.sum() + entropy.sum()).backward()
    ignored = targets == 7
    assert torch.equal(found == 0, ignored)
    assert torch.equal(entropy == 0, ignored)
    assert torch.equal(leaves["hidden"].grad.eq(0).all(1), ignored)


def test_tokens_without_an_incoming_gradient_are_not_computed_again(backend):
    """Their hidden states, here nan, would spoil every gradient."""
    inputs, targets = make(), make_targets(ignored=0.0)
    asked = torch.arange(37) % 3 == 0
    inputs["hidden"][~asked] = torch.nan
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    found = kernels.log_probs(**leaves, targets=targets, backend=backend)
    found[asked].sum().backward()
    alone = {"hidden": inputs["hidden"].detach()[asked], "weight": inputs["weight"].detach()}
    expected = outputs_and_grads(
        lambda **leaves: kernels.log_probs(**leaves, targets=targets[asked], backend="reference").sum(), alone
    )
    scale = torch.randn((), generator=torch.Generator().manual_seed(7), dtype=torch.float64).float()
    torch.testing.assert_close(leaves["weight"].grad * scale, expected[2])
    torch.testing.assert_close(leaves["hidden"].grad[asked] * scale, expected[1])
    assert not leaves["hidden"].grad[~asked].any()


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_two_results_alone_has_gradients(backend, used):
    inputs, targets = make(), make_targets()

    def results(backend):
        return outputs_and_grads(
            lambda **leaves: kernels.log_probs(**leaves, targets=targets, entropy=True, backend=backend)[used], inputs
        )

    assert_same(results(backend), results("reference"), 1e-5)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_one_frozen_side(backend, trained):
    inputs, targets, results = make(), make_targets(), []
    for name in (backend, "reference"):
        leaves = {k: v.clone().requires_grad_(k == trained) for k, v in inputs.items()}
        kernels.log_probs(**leaves, targets=targets, backend=name).sum().backward()
        results.append([leaf.grad for leaf in leaves.values() if leaf.grad is not None])
    assert [len(r) for r in results] == [1, 1]
    torch.testing.assert_close(*results)


def test_without_gradients_nothing_is_kept(backend):
    inputs = make()
    inputs["weight"].requires_grad_()
    with torch.no_grad():
        assert kernels.log_probs(**inputs, targets=make_targets(), backend=backend).grad_fn is None
    assert kernels.log_probs(**make(), targets=make_targets(), backend=backend).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_any_layout(backend, dtype):
    inputs, targets = make(40, 22, 38, dtype), make_targets(80, 19)[::2]
    views = {"hidden": inputs["hidden"][:, ::2], "weight": inputs["weight"].t()[:11].t()[::2]}
    copies = {k: v.clone(memory_format=torch.contiguous_format) for k, v in views.items()}

    def results(values):
        leaves = {k: v.detach().requires_grad_() for k, v in values.items()}
        found, entropy = kernels.log_probs(**leaves, targets=targets, entropy=True, chunk_size=7, backend=backend)
        (found.sum() * 2 + entropy.sum()).backward()  # an incoming gradient without memory of its own
        return [found.detach(), entropy.detach(), *(leaf.grad for leaf in leaves.values())]

    for got, expected in zip(results(views), results(copies), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_all_tokens_never_exist(largest_tensor, backend, dtype):
    S, D, V = 512, 4, 300
    inputs = {k: v.requires_grad_() for k, v in make(S, D, V, dtype).items()}
    with largest_tensor() as seen:
        found, entropy = kernels.log_probs(
            **inputs, targets=make_targets(S, V), entropy=True, chunk_size=64, backend=backend
        )
        (found.sum() + entropy.sum()).backward()
    assert 64 * V <= seen.elements < S * V // 4


def test_backward_may_run_twice(backend):
    inputs = {k: v.requires_grad_() for k, v in make().items()}
    total = kernels.log_probs(**inputs, targets=make_targets(), backend=backend).sum()
    first = torch.autograd.grad(total, list(inputs.values()), retain_graph=True)
    for got, expected in zip(torch.autograd.grad(total, list(inputs.values())), first, strict=True):
        torch.testing.assert_close(got, expected)


def test_weights_that_changed_before_the_backward_pass_are_an_error(backend):
    inputs = {k: v.requires_grad_() for k, v in make().items()}
    total = kernels.log_probs(**inputs, targets=make_targets(), backend=backend).sum()
    with torch.no_grad():
        inputs["weight"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_at_all(backend, dtype):
    inputs = {k: v.requires_grad_() for k, v in make(0, 6, 9, dtype).items()}
    found = kernels.log_probs(**inputs, targets=torch.empty(0, dtype=torch.int64), backend=backend)
    found.sum().backward()
    assert found.shape == (0,)
    assert torch.equal(inputs["weight"].grad, torch.zeros(9, 6, dtype=dtype))


def test_large_logits_are_stable(backend):
    inputs = make(37, 6, 100)
    inputs["hidden"] *= 1000
    compare(inputs, make_targets(37, 100), backend, 1e-4, entropy=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_shows_in_its_row_alone(backend, dtype, value):
    inputs, targets = make(5, 3, 40, dtype), make_targets(5, 40, 0.0)
    inputs["weight"] = inputs["weight"].abs()
    inputs["hidden"][2, 1] = value
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    found = kernels.log_probs(**leaves, targets=targets, backend=backend)
    found.sum().backward()
    assert found.isfinite().tolist() == [True, True, False, True, True]
    assert leaves["hidden"].grad.isfinite().all(1).tolist() == [True, True, False, True, True]
    assert not leaves["weight"].grad.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [-1, 40])
def test_targets_outside_the_vocabulary_are_an_error(backend, target, dtype):
    with pytest.raises((IndexError, RuntimeError)):
        kernels.log_probs(**make(3, 4, 40, dtype), targets=torch.tensor([3, target, 5]), backend=backend)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_cannot_be(backend, temperature):
    with pytest.raises(ValueError, match="temperature is"):
        kernels.log_probs(**make(), targets=make_targets(), temperature=temperature, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_depend_on_the_number_of_threads_by_rounding_at_most(backend, dtype):
    inputs, targets = make(50, 8, 1300, dtype), make_targets(50, 1300)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
            found = kernels.log_probs(**leaves, targets=targets, backend=backend)
            found.sum().backward()
            results.append([found.detach(), *(leaf.grad for leaf in leaves.values())])
    finally:
        torch.set_num_threads(before)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("outputs", [50, 128])
def test_gradients_hold_no_subnormal_numbers(backend, outputs):
    """Logits from -200 to 200."""
    hidden = torch.tensor([[200.0], [0.0]], requires_grad=True)
    weight = (torch.linspace(-200, 200, outputs) / 200).unsqueeze(1).requires_grad_()
    targets = torch.tensor([outputs - 1, 3])
    found, entropy = kernels.log_probs(hidden, weight, targets, entropy=True, backend=backend)
    (found.sum() + entropy.sum()).backward()
    grads = weight.grad[weight.grad != 0].abs()
    assert grads.min() > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("op", [kernels.log_probs, kernels.linear_cross_entropy])
@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "message"),
    [
        ((4, 6), (19, 6), 3, "targets .3,. for hidden of 4 rows"),
        ((4, 6), (19, 6), 8, "targets .8,. for hidden of 4 rows"),
        ((2, 2, 6), (19, 6), 4, "must be .S, D. and .V, D."),
        ((4, 6), (19, 5), 4, "must be .S, D. and .V, D."),
        ((4, 6), (0, 6), 4, "V at least 1"),
    ],
)
def test_shapes_that_do_not_go_together_are_told_in_one_line(backend, op, hidden, weight, targets, message):
    with pytest.raises(ValueError, match=message):
        op(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64), backend=backend)


@pytest.mark.parametrize("op", [kernels.log_probs, kernels.linear_cross_entropy])
@pytest.mark.parametrize("size", [0, -4])
def test_chunks_of_no_tokens_are_refused(backend, op, size):
    with pytest.raises(ValueError, match="chunk_size is"):
        op(**make(), targets=make_targets(), chunk_size=size, backend=backend)


@pytest.mark.parametrize("temperature", [1e-40, 1e-300, float("inf")])
def test_temperatures_whose_inverse_is_no_number_are_refused(backend, temperature):
    with pytest.raises(ValueError, match="it must be at least 2"):
        kernels.log_probs(**make(), targets=make_targets(), temperature=temperature, backend=backend)


@pytest.mark.parametrize("gap", [0.0, 0.37, 1.2, 3.0, 5.1])
def test_flat_rows_of_a_large_vocabulary(backend, gap):
    """Where every token adds to the sum, rounding must not: against float64."""
    V = 131072
    x = torch.full((V, 1), -gap)
    x[5] = 0
    expected = x[:, 0].double().log_softmax(0)
    found, entropy = kernels.log_probs(torch.ones(1, 1), x, torch.tensor([5]), entropy=True, backend=backend)
    loss = kernels.linear_cross_entropy(torch.ones(1, 1), x, torch.tensor([5]), backend=backend)
    in_cpp = backend is None and kernels.choose("log_probs", "cpu")[0] == "cpu"
    within = 2e-6 if in_cpp else 2e-4  # PyTorch's own sums
    assert float(found) == pytest.approx(float(expected[5]), abs=within)
    # The loss adds up 8,192 numbers in float before they join a double.
    assert float(loss) == pytest.approx(-float(expected[5]), abs=5 * within)
    assert float(entropy) == pytest.approx(-float((expected.exp() * expected).sum()), abs=10 * within)


@pytest.mark.parametrize("name", ["default", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_is_finite_where_tokens_are_impossible(backend, name, dtype):
    weight = torch.zeros(1200, 1).index_fill_(0, torch.arange(600), -torch.inf).index_fill_(0, torch.tensor([700]), 2)
    found, entropy = kernels.log_probs(
        torch.ones(1, 1, dtype=dtype),
        weight.to(dtype),
        torch.tensor([700]),
        entropy=True,
        backend=backend if name == "default" else name,
    )
    expected = weight[600:, 0].double().log_softmax(0)
    assert float(found) == pytest.approx(float(expected[100]), abs=1e-5)
    assert float(entropy) == pytest.approx(-float((expected.exp() * expected).sum()), abs=1e-4)


def test_results_may_be_changed_in_place_before_the_backward_pass(backend):
    inputs, targets, grads = make(), make_targets(), []
    for in_place in (True, False):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        found, entropy = kernels.log_probs(**leaves, targets=targets, entropy=True, backend=backend)
        total = found.mul_(2.0) + entropy.mul_(3.0) if in_place else 2 * found + 3 * entropy
        total.sum().backward()
        grads.append([leaf.grad for leaf in leaves.values()])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_under_torch_func_gradients_are_those_of_autograd(backend):
    inputs, targets = make(), make_targets()

    def total(hidden):
        found, entropy = kernels.log_probs(hidden, inputs["weight"], targets, entropy=True, backend=backend)
        loss = kernels.linear_cross_entropy(hidden, inputs["weight"], targets, backend=backend)
        return found.sum() + 2 * entropy.sum() + 3 * loss

    leaf = inputs["hidden"].clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(inputs["hidden"]), leaf.grad)


def test_a_second_derivative_is_refused(backend):
    leaves = {k: v.requires_grad_() for k, v in make().items()}
    found = kernels.log_probs(**leaves, targets=make_targets(), backend=backend)
    (grad,) = torch.autograd.grad(found.square().sum(), leaves["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
