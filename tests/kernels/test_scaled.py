"""Weights of data and scale against float64 arithmetic with a table of all e4m3 numbers."""

import pytest
import torch
from nano3.kernels import Scaled
from torch import Tensor

from nano3 import kernels

BACKENDS = [None, "eager", "reference"]
E4M3 = torch.float8_e4m3fn


def all_numbers() -> list[float]:
    """The 127 numbers from 0 to 448 by definition: 4 exponent bits with bias 7, 3 of mantissa, no infinity."""
    subnormal = [m / 8 * 2.0**-6 for m in range(8)]
    normal = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    return [*subnormal, *normal][:127]


def nearest(x: Tensor) -> Tensor:
    """float64 -> the nearest e4m3 number, ties to the even code, cut off at 448."""
    table = torch.tensor(all_numbers(), dtype=torch.float64)
    gap = (x.abs().unsqueeze(-1).clamp(max=448.0) - table).abs()
    least = gap.min(-1, keepdim=True).values
    codes = torch.arange(127)
    best = torch.where(gap == least, torch.where(codes % 2 == 0, codes, codes + 1000), 10_000).min(-1).values % 1000
    return table[best] * x.sign()


def quantized(*shape: int, per_expert: bool = False, inputs: bool = True, seed: int = 0) -> Scaled:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=g)
    scale = (w.abs().amax((-2, -1)) if per_expert else w.abs().amax()) / 448
    factor = scale[:, None, None] if per_expert else scale
    return Scaled((w / factor).to(E4M3), scale, torch.tensor(0.0057) if inputs else None)


def product(x: Tensor, w: Scaled) -> Tensor:
    """float64, from the definition."""
    x, matrix = x.double(), w.data.double() * w.scale.double()
    if w.input_scale is not None:
        scale = w.input_scale.double()
        x = nearest(x / scale) * scale
    return x @ matrix.T


def is_sure(x: Tensor, w: Scaled) -> Tensor:
    """(rows,) whether all of a row lies apart from the middles between e4m3 numbers, where float32's last bit decides
    what it is rounded to."""
    z = x.double() / w.input_scale.double()
    return (nearest(z * (1 + 1e-5)) == nearest(z * (1 - 1e-5))).all(-1)


def expert(w: Scaled, e: int) -> Scaled:
    return Scaled(w.data[e], w.scale[e] if w.scale.dim() else w.scale, w.input_scale)


def test_float64_is_rounded_once():
    table = torch.tensor(all_numbers(), dtype=torch.float64)
    halves = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, halves, halves * (1 + 1e-12), halves * (1 - 1e-12), torch.tensor([1e-9, 449.0, torch.inf])])
    x = torch.cat([x, -x])
    assert torch.equal(kernels.quantize_e4m3(x, torch.tensor(1.0)), nearest(x))
    assert kernels.quantize_e4m3(x.new_tensor([torch.nan]), torch.tensor(1.0)).isnan().all()


@pytest.mark.parametrize("scale", [1.0, 0.0057, 3.0])
def test_rounding_is_to_the_nearest_of_all_numbers(scale):
    table = torch.tensor(all_numbers(), dtype=torch.float64)
    halves = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, halves, halves * 1.001, halves * 0.999, torch.tensor([449.0, 1e4, torch.inf])]) * scale
    x = torch.cat([x, -x]).float()
    got = kernels.quantize_e4m3(x, torch.tensor(scale))
    assert torch.equal(got.double(), nearest((x / scale).double()))
    assert kernels.quantize_e4m3(torch.tensor([torch.nan]), torch.tensor(1.0)).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize(
    ("rows", "dtype", "tolerance"),
    [(3, torch.float32, 2e-6), (130, torch.float32, 2e-6), (5, torch.bfloat16, 8e-3), (5, torch.float64, 1e-7)],
)
def test_linear_equals_float64_arithmetic(backend, inputs, rows, dtype, tolerance):
    x, w = torch.randn(rows, 37).to(dtype), quantized(21, 37, inputs=inputs)
    got = kernels.linear(x, w, backend=backend)
    assert got.dtype == dtype
    expected = product(x, w)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plain", ["", "up", "down"])
def test_squared_relu_mlp_equals_float64_arithmetic(backend, plain):
    x, up, down = torch.randn(12, 19), quantized(33, 19), quantized(19, 33, seed=1)
    hidden = (x.double() @ up.dequantized(torch.float64).T if plain == "up" else product(x, up)).relu().square()
    hidden = hidden.float().double()  # the activation goes to the second product as float32
    expected = hidden @ down.dequantized(torch.float64).T if plain == "down" else product(hidden, down)
    given = {"up": up, "down": down} | ({plain: locals()[plain].dequantized()} if plain else {})
    got = kernels.squared_relu_mlp(x, **given, backend=backend)
    sure = is_sure(hidden, down) if plain != "down" else torch.ones(12, dtype=torch.bool)
    assert sure.sum() >= 6
    atol = 2e-5 * float(expected.abs().max())
    torch.testing.assert_close(got.double()[sure], expected[sure], rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_expert", [True, False])
@pytest.mark.parametrize("tokens", [6, 90])
def test_grouped_mlp_is_the_sum_of_experts_alone(backend, per_expert, tokens):
    x = torch.randn(tokens, 19)
    up, down = (quantized(*s, per_expert=per_expert, seed=i) for i, s in enumerate([(5, 33, 19), (5, 19, 33)]))
    ids, weights = torch.rand(tokens, 5).topk(2).indices, torch.rand(tokens, 2)
    got, compared = kernels.grouped_mlp(x, up, down, ids, weights, backend=backend), 0
    for token in range(tokens):
        hidden = torch.stack([product(x[token], expert(up, e)).relu().square() for e in ids[token].tolist()])
        if not is_sure(hidden, down).all():
            continue
        compared += 1
        parts = [
            w * kernels.squared_relu_mlp(x[token], expert(up, e), expert(down, e), backend="reference")
            for e, w in zip(ids[token].tolist(), weights[token], strict=True)
        ]
        expected = torch.stack(parts).sum(0)
        torch.testing.assert_close(got[token], expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert compared >= tokens / 2


@pytest.mark.parametrize("inputs", [True, False])
def test_gradients_go_to_activations_as_in_the_reference(check, inputs):
    x = torch.randn(3, 7, 19, dtype=torch.float64)
    up, down = quantized(33, 19, inputs=inputs), quantized(19, 33, inputs=inputs)
    check(kernels.linear, {"x": x}, weight=up)
    check(kernels.squared_relu_mlp, {"x": x}, up=up, down=down)
    experts = {"up": quantized(4, 33, 19, per_expert=True, inputs=inputs), "down": quantized(4, 19, 33, inputs=inputs)}
    ids, weights = torch.rand(21, 4).topk(2).indices, torch.rand(21, 2, dtype=torch.float64)
    check(kernels.grouped_mlp, {"x": x.flatten(0, 1), "weights": weights}, expert_ids=ids, **experts)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_the_gradient_is_that_of_the_matrix_and_zero_where_the_input_was_cut_off(backend):
    w = quantized(21, 37)
    x = torch.randn(5, 37, dtype=torch.float64)
    x[2, 3], x[4, 5] = 3.0, -50.0  # beyond 448 * 0.0057
    leaf, dout = x.clone().requires_grad_(), torch.randn(5, 21, dtype=torch.float64)
    kernels.linear(leaf, w, backend=backend).backward(dout)
    expected = dout @ w.dequantized(torch.float64)
    expected[x.abs() > 448 * 0.0057] = 0
    torch.testing.assert_close(leaf.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2, torch.int8, torch.uint8, torch.int64, torch.bool])
def test_stored_numbers_without_their_scale_are_refused(dtype):
    x, w = torch.randn(3, 8), (torch.randn(8, 8) * 100).to(dtype)
    name = str(dtype).removeprefix("torch.")
    ids, weights = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    calls = {
        "linear": lambda: kernels.linear(x, w),
        "squared_relu_mlp": lambda: kernels.squared_relu_mlp(x, x.new_zeros(8, 8), w),
        "grouped_mlp": lambda: kernels.grouped_mlp(x, w[None], x.new_zeros(1, 8, 8), ids, weights),
        "linear_cross_entropy": lambda: kernels.linear_cross_entropy(x, w, ids[:, 0]),
        "log_probs": lambda: kernels.log_probs(x, w, ids[:, 0]),
        "route": lambda: kernels.route(x, w, torch.zeros(8), 2, 1.0),
    }
    for op, call in calls.items():
        with pytest.raises(ValueError, match=f"^{op}: a weight of {name} is numbers without their scale"):
            call()


def test_scales_that_fit_no_matrix_are_refused():
    data = torch.zeros(4, 6, 5).to(E4M3)
    with pytest.raises(ValueError, match=r"scale \(6,\) of float32; it must be one number, or one an expert"):
        Scaled(data, torch.ones(6))
    with pytest.raises(ValueError, match=r"input_scale \(4,\)"):
        Scaled(data[0], torch.tensor(1.0), torch.ones(4))
    with pytest.raises(ValueError, match=r"float8_e4m3fn, int8 or .*, not .* of int16"):
        Scaled(torch.zeros(2, 2, dtype=torch.int16), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"linear: a scaled weight of shape .* needs 2 dimensions"):
        kernels.linear(torch.zeros(2, 5), Scaled(data, torch.ones(4)))
