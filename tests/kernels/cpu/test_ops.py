"""The C++ kernels equal the reference at odd sizes, in float32 and bfloat16; what they do not take goes to PyTorch."""

import pytest
import torch
from nano3.kernels.cpu import check, mamba, ops
from nano3.kernels.cpu.native import native

from nano3 import kernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def normal(dtype, *shape):
    return torch.randn(*shape).to(dtype)


def close(got, expected, dtype):
    assert got.dtype == expected.dtype
    scale = expected.float().abs().max().clamp_min(1e-6)
    assert float((got.float() - expected.float()).abs().max() / scale) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 13, 64, 65])
@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (7, 15), (64, 16), (129, 100), (33, 257)])
@torch.inference_mode()
def test_linear(dtype, rows, outputs, width):
    x, weight = normal(dtype, rows, width), normal(dtype, outputs, width)
    close(kernels.linear(x, weight), kernels.linear(x, weight, backend="reference"), dtype)


@torch.inference_mode()
def test_linear_takes_any_mixture_of_types_and_views():
    x, weight = torch.randn(2, 3, 40), torch.randn(30, 40)
    for x_type in TOLERANCE:
        for weight_type in TOLERANCE:
            a, b = x.to(x_type), weight.to(weight_type)
            close(kernels.linear(a, b), kernels.linear(a, b, backend="reference"), torch.bfloat16)
    close(kernels.linear(x[:, ::2], weight), kernels.linear(x[:, ::2], weight, backend="reference"), torch.float32)
    assert kernels.linear(torch.empty(0, 40), weight).shape == (0, 30)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 8, 16), (5, 33, 70), (64, 20, 129), (3, 130, 70)])
@torch.inference_mode()
def test_squared_relu_mlp(dtype, rows, width, hidden):
    arguments = normal(dtype, rows, width), normal(dtype, hidden, width), normal(dtype, width, hidden)
    close(kernels.squared_relu_mlp(*arguments), kernels.squared_relu_mlp(*arguments, backend="reference"), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 5), (3, 7, 16), (40, 513)])
@torch.inference_mode()
def test_rms_norm(dtype, shape):
    x, weight = normal(dtype, *shape), normal(torch.float32, shape[-1])
    close(kernels.rms_norm(x, weight, 1e-5), kernels.rms_norm(x, weight, 1e-5, backend="reference"), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "n_experts", "top_k"), [(1, 4, 2), (9, 3, 3), (40, 30, 4)])
@pytest.mark.parametrize(("hidden", "width"), [(35, 24), (70, 130)])
@torch.inference_mode()
def test_experts_with_empty_and_crowded_ones(dtype, tokens, n_experts, top_k, hidden, width):
    ids = torch.stack([torch.randperm(max(top_k, n_experts - 1))[:top_k] for _ in range(tokens)])
    up, down = normal(dtype, n_experts, hidden, width), normal(dtype, n_experts, width, hidden)
    arguments = normal(dtype, tokens, width), up, down, ids, torch.rand(tokens, top_k)
    close(kernels.grouped_mlp(*arguments), kernels.grouped_mlp(*arguments, backend="reference"), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slots", [[0], [4, 1, 7], [2, 3, 4, 5]])
@pytest.mark.parametrize("backend", ["eager", None])
@torch.inference_mode()
def test_mamba_step_advances_its_slots_and_no_others(dtype, slots, backend):
    case = list(mamba._mamba(torch.Generator().manual_seed(1), dtype))
    case[:3] = [normal(dtype, len(slots), m.shape[1] + 5)[:, 2:-3] for m in case[:3]]
    case[3:6] = [normal(dtype, 9, *case[3].shape[1:]), torch.randn(9, *case[4].shape[1:]), torch.tensor(slots)]
    expected, got = ([t.clone() if isinstance(t, torch.Tensor) else t for t in case] for _ in range(2))
    y = kernels.mamba_step(*expected, backend="reference")
    close(kernels.mamba_step(*got, backend=backend), y, dtype)
    for name, a, b, before in zip(("conv", "ssm"), got[3:5], expected[3:5], case[3:5], strict=True):
        close(a, b, dtype)
        others = [slot for slot in range(9) if slot not in slots]
        assert torch.equal(a[others], before[others]), name


@pytest.mark.parametrize("slots", [[4, -1, 1], [-1, 3, -1, 0], [-1]])
@pytest.mark.parametrize("backend", ["eager", "reference", None])
@torch.inference_mode()
def test_rows_of_padding_write_no_state(slots, backend):
    case = list(mamba._mamba(torch.Generator().manual_seed(1), torch.float32))
    case[:3] = [torch.randn(len(slots), m.shape[1]) for m in case[:3]]
    case[5] = torch.tensor(slots)
    got, rows = [t.clone() if isinstance(t, torch.Tensor) else t for t in case], case[5] >= 0
    y = kernels.mamba_step(*got, backend=backend)
    case[:3], case[5] = [m[rows] for m in case[:3]], case[5][rows]
    assert not y[~rows].any()
    if rows.any():
        close(y[rows], kernels.mamba_step(*case, backend="reference"), torch.float32)
    close(got[3], case[3], torch.float32)
    close(got[4], case[4], torch.float32)


def mamba_case(dtype, taps=4, N=17, H=4, P=5, G=2):
    """No size is a multiple of a vector's; the norm's eps is no trifle."""
    channels, slots = H * P + 2 * G * N, 3
    rows = normal(dtype, slots, channels), normal(dtype, slots, H), normal(dtype, slots, H * P)
    states = normal(dtype, slots, channels, taps - 1), torch.randn(slots, H, P, N)
    weights = normal(dtype, channels, taps), normal(dtype, channels), *(torch.randn(H) for _ in range(3))
    return [*rows, *states, torch.tensor([2, 0, 1]), *weights, normal(dtype, H * P), 0.5, G]


def same_mamba_step(case, dtype):
    expected, got = ([t.clone() if isinstance(t, torch.Tensor) else t for t in case] for _ in range(2))
    y = kernels.mamba_step(*expected, backend="reference")
    close(kernels.mamba_step(*got), y, dtype)
    for a, b in zip(got[3:5], expected[3:5], strict=True):
        close(a, b, dtype)
    return got


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("taps", [2, 3, 4, 5])
@torch.inference_mode()
def test_mamba_step_of_odd_sizes(dtype, taps):
    same_mamba_step(mamba_case(dtype, taps), dtype)


@torch.inference_mode()
def test_mamba_step_with_steep_decays_makes_no_subnormal_numbers():
    case = mamba_case(torch.float32)
    case[8], case[10] = torch.full((4,), 5.0), torch.zeros(4)  # log decays of about -100
    case[0].zero_()
    case[3].zero_()
    case[7].zero_()  # nothing is added to the state
    state = same_mamba_step(case, torch.float32)[4]
    if native().library:
        assert not ((state != 0) & (state.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [24, 17])
@pytest.mark.parametrize("lengths", [[1], [63, 64, 65], [5000, 1, 300]])
@torch.inference_mode()
def test_paged_attention_of_single_queries(dtype, lengths, width):
    page = 16
    counts = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(counts) + 2)
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int64)
    for row, count in enumerate(counts):
        table[row, :count], order = order[:count], order[count:]
    keys, values = (normal(dtype, sum(counts) + 2, page, 2, width) for _ in range(2))
    arguments = normal(dtype, len(lengths), 6, width), keys, values, table, [1] * len(lengths), lengths
    close(kernels.paged_attention(*arguments), kernels.paged_attention(*arguments, backend="reference"), dtype)


@pytest.mark.skipif(native().library is None, reason="of the C++ kernels alone")
@pytest.mark.parametrize("op", ops.KERNELS)
def test_a_kernel_takes_what_it_is_made_for(op, monkeypatch):
    """Else every comparison would be one of PyTorch with itself."""
    module = next(module for module in ops.MODULES if op in module.KERNELS)
    called, run = [], module.run
    monkeypatch.setattr(module, "run", lambda name, *a, **options: called.append(name) or run(name, *a, **options))
    assert kernels.choose(op, "cpu")[0] == "cpu"
    for dtype in (torch.float32,) if op in ("attention", "best_tokens") else TOLERANCE:
        called.clear()
        getattr(kernels, op)(*ops.KERNELS[op].case(torch.Generator().manual_seed(1), dtype))
        assert called, dtype


def test_gradients_go_through_pytorch():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    kernels.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(3, 8))


@pytest.mark.parametrize("wrong", [1.0, torch.nan])
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch, wrong):
    monkeypatch.setitem(ops.FUNCTIONS, "linear", lambda x, weight: x @ weight.T + wrong)
    check.problem.cache_clear()
    try:
        assert ("self-check failed" if native().library else native().reason) in check.problem("linear")
    finally:
        check.problem.cache_clear()


def test_results_do_not_depend_on_the_number_of_threads():
    x, weight = torch.randn(4, 100), torch.randn(301, 100)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                results.append(kernels.linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@torch.inference_mode()
def test_sizes_that_do_not_fit_are_an_error_not_a_wrong_address():
    with pytest.raises(RuntimeError):
        kernels.linear(torch.randn(2, 6), torch.randn(5, 4))
    with pytest.raises(ValueError, match="rms_norm: weight"):
        kernels.rms_norm(torch.randn(2, 64), torch.randn(8), 1e-5)
    with pytest.raises(RuntimeError):
        kernels.squared_relu_mlp(torch.randn(2, 6), torch.randn(5, 6), torch.randn(6, 4))
    up, down = torch.randn(3, 5, 4), torch.randn(3, 4, 5)
    with pytest.raises((IndexError, RuntimeError)):
        kernels.grouped_mlp(torch.randn(1, 4), up, down, torch.tensor([[0, 3]]), torch.ones(1, 2))


@torch.inference_mode()
def test_nan_stays_nan():
    x = torch.randn(3, 20)
    x[1, 4] = torch.nan
    up, down = torch.randn(2, 9, 20), torch.randn(2, 20, 9)
    for y in (
        kernels.linear(x, torch.randn(7, 20)),
        kernels.squared_relu_mlp(x, torch.randn(9, 20), torch.randn(20, 9)),
        kernels.rms_norm(x, torch.ones(20), 1e-5),
        kernels.grouped_mlp(x, up, down, torch.tensor([[0], [1], [0]]), torch.ones(3, 1)),
    ):
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()
    pages = torch.randn(4, 4, 2, 8)
    pages[2, 1, 0, 3] = torch.nan
    table = torch.tensor([[0, 2], [1, 3]])
    y = kernels.paged_attention(torch.randn(2, 4, 8), pages, torch.randn(4, 4, 2, 8), table, [1, 1], [8, 8])
    assert y[0, :2].isnan().all()
    assert y[0, 2:].isfinite().all()
    assert y[1].isfinite().all()
