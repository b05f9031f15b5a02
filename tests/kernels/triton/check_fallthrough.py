"""Calls that Triton's kernels do not take go to PyTorch; run by test_interpreted.py."""

import pytest
import torch
from nano3.kernels import dispatch, triton
from nano3.kernels.triton import norm

from nano3 import kernels


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_kernels_do_not_read(dtype):
    x, weight = torch.randn(2, 9, dtype=dtype), torch.randn(9, dtype=dtype)
    got, expected = (kernels.rms_norm(x, weight, 1e-5, backend=name) for name in ("triton", "eager"))
    assert torch.equal(got, expected)


def test_what_needs_a_gradient():
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    grads = [
        torch.autograd.grad(kernels.route(x, weight, torch.zeros(7), 2, 1.0, backend=name)[1][:, 0].sum(), (x, weight))
        for name in ("triton", "eager")
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_experts_that_need_a_gradient():
    x, up, down = (torch.randn(shape, requires_grad=True) for shape in ((3, 8), (4, 6, 8), (4, 8, 6)))
    ids, weights = torch.tensor([[0, 1], [1, 3], [3, 0]]), torch.rand(3, 2, requires_grad=True)
    leaves, results = (x, up, down, weights), []
    for name in ("triton", "eager"):
        out = kernels.grouped_mlp(x, up, down, ids, weights, backend=name)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def sized(*shape):
    return torch.randn(shape)


SHORT = {
    "gated_rms_norm": lambda: (sized(2, 16), sized(2, 16), sized(8), 1e-5, 2),
    "causal_conv1d, bias": lambda: (sized(1, 5, 16), sized(16, 4), sized(8)),
    "causal_conv1d, weight": lambda: (sized(1, 5, 16), sized(8, 4), sized(16)),
    "route": lambda: (sized(3, 8), sized(6, 8), sized(4), 2, 1.0),
    "ssd_scan, A": lambda: (
        sized(1, 5, 4, 8), sized(1, 5, 4), sized(2), sized(1, 5, 2, 8), sized(1, 5, 2, 8), sized(4), sized(4)
    ),
    "ssd_scan, C": lambda: (
        sized(1, 5, 4, 8), sized(1, 5, 4), sized(4), sized(1, 5, 2, 8), sized(1, 5, 2, 4), sized(4), sized(4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHORT)
def test_tensors_that_are_too_small_are_refused_and_not_read_past_their_ends(case):
    with pytest.raises(RuntimeError, match="size"):
        getattr(kernels, case.partition(",")[0])(*SHORT[case](), backend="triton")


def test_states_that_are_too_small_are_refused():
    x, weight, bias = sized(2, 5, 16), sized(16, 4), sized(16)
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        kernels.causal_conv1d(x, weight, bias, initial_state=sized(1, 16, 3), backend="triton")


@pytest.mark.parametrize("queries", [1, 3])
def test_pages_of_narrower_heads_than_the_queries_are_refused(queries):
    pages, table = sized(4, 4, 2, 4), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"size|K/V"):
        kernels.paged_attention(sized(queries, 2, 8), pages, pages, table, [queries], [3], backend="triton")


def test_on_a_cpu_triton_runs_only_where_it_is_forced(monkeypatch):
    assert "triton" not in {choice.backend for choice in kernels.explain("cpu")}
    monkeypatch.setenv("NANO3_BACKEND", "triton")
    assert kernels.choose("rms_norm", "cpu")[0] == "triton"


def test_full_memory_in_a_self_check_switches_a_kernel_off_for_that_call_only(monkeypatch):
    kernel, failures = norm.KERNELS["rms_norm"], [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]

    def function(*arguments):
        if failures:
            raise failures.pop()
        return kernel.function(*arguments)

    monkeypatch.setitem(norm.KERNELS, "rms_norm", kernel._replace(function=function))
    monkeypatch.setattr(triton, "_PROBLEMS", {})
    triton.kernel.cache_clear()
    dispatch._chosen.cache_clear()
    x, weight = torch.randn(2, 9), torch.randn(9)
    try:
        with pytest.raises(ValueError, match="self-check raised OutOfMemoryError: CUDA out of memory"):
            kernels.rms_norm(x, weight, 1e-5, backend="triton")
        assert torch.isfinite(kernels.rms_norm(x, weight, 1e-5, backend="triton")).all()
    finally:
        triton.kernel.cache_clear()
