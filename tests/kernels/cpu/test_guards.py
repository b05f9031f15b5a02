"""What C++ kernels must not be given goes to PyTorch, whatever the caller's modes, default type and default device."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from nano3.kernels.cpu import check, ops
from nano3.kernels.cpu.native import native
from nano3.kernels.cpu.program import check as program_check
from nano3.kernels.reference import FUNCTIONS as REFERENCE
from torch._subclasses.fake_tensor import FakeTensorMode

from nano3 import kernels
from nano3.model.lm import LM

OPS = list(ops.KERNELS)


@contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "bfloat16": lambda: default_type(torch.bfloat16),
    "float64": lambda: default_type(torch.float64),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


def case(op, dtype=torch.float32):
    return ops.KERNELS[op].case(torch.Generator().manual_seed(1), dtype)


def results(function, arguments, *, gradients):
    """Outputs, updated arguments and gradients."""
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()] if gradients else []
    for leaf in leaves:
        leaf.requires_grad_()
    out = function(*arguments)
    out = [*out] if isinstance(out, tuple) else [out]
    roots = [o for o in out if o.requires_grad]
    grads = torch.autograd.grad(roots, leaves, [torch.ones_like(o) for o in roots], allow_unused=True) if roots else ()
    return [t.detach() for t in (*out, *arguments, *grads) if isinstance(t, torch.Tensor)]


def assert_close(got, expected, tolerance):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-6)) <= tolerance


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("op", OPS)
def test_self_checks_hold_in_any_state(op, state):
    check.problem.cache_clear()
    try:
        with STATES[state]():
            assert check.problem(op) == (None if native().library else native().reason)
    finally:
        check.problem.cache_clear()


@pytest.mark.parametrize("state", STATES)
def test_the_self_check_of_decoding_holds_in_any_state(state):
    program_check.problem.cache_clear()
    try:
        with STATES[state]():
            assert program_check.problem() == (None if native().library else native().reason)
    finally:
        program_check.problem.cache_clear()


def test_self_checks_hold_where_tensors_are_fake():
    check.problem.cache_clear()
    try:
        with FakeTensorMode():
            assert check.problem("route") == (None if native().library else native().reason)
    finally:
        check.problem.cache_clear()


@pytest.mark.parametrize("state", ["bfloat16", "float64", "meta"])
@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_defaults(op, state):
    arguments, gradients = case(op), ops.KERNELS[op].differentiable
    run = getattr(kernels, op)
    expected = results(run, arguments, gradients=gradients)
    with STATES[state]():
        got = results(run, arguments, gradients=gradients)
    assert_close(got, expected, 1e-6)


@pytest.mark.parametrize("op", OPS)
def test_results_under_autocast(op):
    """Many rows, so that PyTorch's own products take part."""
    arguments, run = case(op), getattr(kernels, op)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(run, arguments, gradients=ops.KERNELS[op].differentiable)
    expected = results(run, arguments, gradients=ops.KERNELS[op].differentiable)
    if op == "route":  # a choice between experts may fall otherwise
        got, expected = got[2:3], expected[2:3]
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        assert float((a.double() - b.double()).abs().max()) <= 0.1 * max(float(b.double().abs().max()), 1.0)


def test_many_rows_are_routed_under_autocast():
    x, weight, bias = torch.randn(300, 40), torch.randn(24, 40) / 6, torch.randn(24)
    scores = kernels.route(x, weight, bias, 3, 2.5, backend="reference")[2]
    with torch.autocast("cpu", torch.bfloat16):
        _, weights, got = kernels.route(x, weight, bias, 3, 2.5)
    assert float((got.float() - scores).abs().max()) < 2e-2
    torch.testing.assert_close(weights.float().sum(1), torch.full((300,), 2.5), rtol=2e-2, atol=0)


class Tagged(torch.Tensor):
    """A subclass that only remembers that it is one."""


@pytest.mark.parametrize("op", OPS)
def test_subclasses_and_what_traces_go_to_pytorch(op, monkeypatch):
    def fails(*_, **__):
        raise AssertionError("a kernel ran")

    arguments = case(op)
    for module in ops.MODULES:
        if hasattr(module, "run"):
            monkeypatch.setattr(module, "run", fails)
    tagged = [a.as_subclass(Tagged) if isinstance(a, torch.Tensor) else a for a in arguments]
    assert ops.FUNCTIONS[op](*tagged) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.FUNCTIONS[op](*arguments) is not None


def test_a_subclass_in_a_keyword_argument_is_seen(monkeypatch):
    monkeypatch.setattr(ops.conv, "run", None)
    x, weight, bias = case("causal_conv1d")
    state = torch.zeros(2, 35, 3).as_subclass(Tagged)
    assert ops.FUNCTIONS["causal_conv1d"](x, weight, bias, initial_state=state)[0].shape == x.shape


COUNTING = ("grouped_mlp", "mamba_step", "linear_cross_entropy", "log_probs")
"""What looks at values to know how much there is to do: fake tensors have none."""


@pytest.mark.parametrize("op", [op for op in OPS if op not in COUNTING])
def test_fake_tensors(op):
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in case(op)]
        got = getattr(kernels, op)(*arguments)
    expected = getattr(kernels, op)(*case(op))
    got, expected = (r if isinstance(r, tuple) else (r,) for r in (got, expected))
    assert [t.shape for t in got] == [t.shape for t in expected]


def test_functorch():
    x, weight = torch.randn(3, 5, 8), torch.randn(6, 8)
    got = torch.func.vmap(kernels.linear, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(got, x @ weight.T)
    got = torch.func.grad(lambda x: kernels.linear(x, weight).sum())(x)
    torch.testing.assert_close(got, weight.sum(0).expand(3, 5, 8))


def logits_and_grads(model, run, tokens):
    model.zero_grad()
    logits = run(tokens)
    logits = logits[0] if isinstance(logits, tuple) else logits
    logits.float().square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_a_compiled_model_computes_the_same(backend, small_config):
    model = LM(dataclasses.replace(small_config, pattern="ME*E")).init_weights(seed=1)
    tokens = torch.randint(small_config.vocab_size, (2, 17))
    expected = logits_and_grads(model, model, tokens)
    torch._dynamo.reset()
    check.problem.cache_clear()
    try:
        got = logits_and_grads(model, torch.compile(model, backend=backend), tokens)
    finally:
        torch._dynamo.reset()
    assert_close(got, expected, 1e-4)


@pytest.mark.parametrize("backend", ["eager", "cpu", "reference", None])
@pytest.mark.parametrize("slots", [[-2, 0, 1], [0, 1, 5], [2, -1, 5], [2, 9, 0]])
@torch.inference_mode()
def test_slots_that_do_not_exist(backend, slots):
    if backend == "cpu" and not native().library:
        backend = None
    arguments = list(case("mamba_step"))
    arguments[5] = torch.tensor(slots)
    before = [arguments[3].clone(), arguments[4].clone()]
    with pytest.raises(IndexError):
        kernels.mamba_step(*arguments, backend=backend)
    assert torch.equal(before[0], arguments[3])
    assert torch.equal(before[1], arguments[4])


@torch.inference_mode()
def test_strided_slots_and_states_of_several_lengths():
    arguments = list(case("mamba_step"))
    arguments[5] = torch.tensor([3, 1, 0, 2, 4, 1])[::2]
    expected = results(REFERENCE["mamba_step"], arguments, gradients=False)
    assert_close(results(kernels.mamba_step, arguments, gradients=False), expected, 1e-5)
    arguments[3] = arguments[3][:4]
    with pytest.raises(IndexError):
        kernels.mamba_step(*arguments)


@pytest.mark.parametrize("page", [-1, 6, 1 << 40])
@pytest.mark.parametrize("queries", [[1, 1], [2, 1]])
@torch.inference_mode()
def test_pages_that_do_not_exist(page, queries):
    q, keys, values, table, _, lengths = case("paged_attention")
    q = torch.randn(sum(queries), *q.shape[1:])
    behind = table.clone()
    behind[1, 2] = page  # the second sequence has two pages
    table[0, 1] = page
    if native().library:
        with pytest.raises(IndexError):
            kernels.paged_attention(q, keys, values, table, queries, lengths, backend="cpu")
        assert kernels.paged_attention(q, keys, values, behind, queries, lengths, backend="cpu").isfinite().all()


@pytest.mark.parametrize("op", sorted(set(OPS) - {"best_tokens", "mamba_step", "paged_attention"}))
@pytest.mark.parametrize("backend", [None, "eager"])
def test_gradients_under_torch_func(op, backend):
    arguments = case(op)
    place = next(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point())

    def total(x, backend=backend):
        out = kernels.choose(op, "cpu", backend)[1](*arguments[:place], x, *arguments[place + 1 :])
        return sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,)) if o.is_floating_point())

    leaf = arguments[place].clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf, "reference"), leaf)
    torch.testing.assert_close(torch.func.grad(total)(arguments[place]), expected, atol=1e-4, rtol=1e-4)
