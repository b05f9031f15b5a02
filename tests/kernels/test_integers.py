"""Matrices of 8-bit and 4-bit integers against integer arithmetic and the definition of Q4_0."""

import pytest
import torch
from nano3.kernels import Scaled, quantize_int4, quantize_int8
from nano3.kernels.integers import int4_groups, int8_rows, pack, round_rows, unpack
from torch import Tensor

from nano3 import kernels

BACKENDS = [None, "eager", "reference"]
WIDTHS = [32, 96, 1056, 2304]
"""Of int4; int8 takes those and odd ones."""


def sums(rows: Tensor, w: Scaled) -> Tensor:
    """(S, O) integer sums."""
    return rows.long() @ w.data.long().T


def int8_product(x: Tensor, w: Scaled) -> Tensor:
    """float32 from the definition: integers, then one product with both scales."""
    rows, scale = round_rows(x.float())
    return (sums(rows, w).float() * (scale * w.scale)).to(x.dtype)


def int4_product(x: Tensor, w: Scaled) -> Tensor:
    """float64 from the definition."""
    rows, scale = round_rows(x.float())
    groups = rows.long().unflatten(-1, (-1, 32)), unpack(w.data).long().unflatten(-1, (-1, 32))
    exact = torch.einsum("sgi,ogi->sog", *groups)
    return (exact.double() * w.scale.double()).sum(-1) * scale.double()


def test_rows_are_rounded_to_nearest_even():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 126.49, -126.51], [0.0] * 6, [254.0, 1.0, 3.0, -1.0, 5.0, 0.0]])
    got, scale = round_rows(x)
    assert got.tolist() == [[127, 0, 2, -2, 126, -127], [0] * 6, [127, 0, 2, 0, 2, 0]]
    assert scale.squeeze(-1).tolist() == [1.0, 0.0, 2.0]


def test_a_row_that_is_no_number_gives_none_and_leaves_the_others():
    x = torch.randn(5, 64)
    x[1, 3], x[2, 5], x[3] = torch.nan, -torch.inf, 1e-31
    for w in (quantize_int8(torch.randn(9, 64)), quantize_int4(torch.randn(9, 64))):
        for backend in BACKENDS:
            got = kernels.linear(x, w, backend=backend)
            assert got[1:3].isnan().all()
            assert (got[3] == 0).all()
            assert torch.equal(got[[0, 4]], kernels.linear(x[[0, 4]], w, backend=backend))


def test_int8_rows_are_a_127th_of_their_largest():
    data, scale = int8_rows(torch.tensor([[254.0, -1.0, 3.0, 1.2], [0.0] * 4, [-127e-3, 0.5e-3, 1.5e-3, 1e-3]]))
    assert data.tolist() == [[127, 0, 2, 1], [0] * 4, [-127, 0, 2, 1]]
    assert scale.tolist() == pytest.approx([2.0, 1.0, 1e-3])
    w = torch.randn(3, 7, 50)
    assert (quantize_int8(w).dequantized() - w).abs().amax(-1).le(w.abs().amax(-1) / 254 * 1.001).all()


def q4_0(block: list[float]) -> tuple[int, list[int]]:
    """The bits of a scale, and the codes of 32 numbers, as ggml's quantize_row_q4_0_ref has them, in float32."""
    numbers = torch.tensor(block)
    largest = max(block, key=abs)
    scale = torch.tensor(largest) / -8
    inverse = 1 / scale if scale else torch.tensor(0.0)
    codes = [min(15, int(float(number * inverse + 8.5))) for number in numbers]
    return int(scale.half().view(torch.int16)), codes


def test_int4_has_the_codes_and_scales_of_q4_0():
    w = torch.randn(6, 96) * torch.tensor([1.0, 1e-3, 30.0, 0.0, 1e-6, 5.0]).unsqueeze(1)
    w[5, :32] = torch.arange(32) - 16.0  # two numbers of the largest magnitude but one
    data, scale = int4_groups(w)
    for row in range(6):
        for group in range(3):
            bits, codes = q4_0(w[row, group * 32 : group * 32 + 32].tolist())
            assert int(scale[row, group].view(torch.int16)) == bits
            assert (unpack(data)[row, group * 32 : group * 32 + 32] + 8).tolist() == codes


def test_the_first_of_two_4_bit_neighbours_is_the_low_half_of_a_byte():
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert pack(codes).tolist() == [[0x21, 0x0F]]
    assert unpack(pack(codes)).tolist() == [[-7, -6, 7, -8]]


def test_int4_rows_must_divide_into_groups():
    with pytest.raises(ValueError, match="rows of 40 numbers do not divide into groups of 32"):
        quantize_int4(torch.randn(4, 40))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [*WIDTHS, 1, 37, 100, 1029])
@pytest.mark.parametrize("rows", [1, 3, 21, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear_equals_integer_arithmetic_to_the_bit(backend, width, rows, dtype):
    x, w = torch.randn(rows, width).to(dtype), quantize_int8(torch.randn(35, width))
    assert torch.equal(kernels.linear(x, w, backend=backend), int8_product(x, w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_sums_beyond_what_float32_holds_are_exact(backend):
    w = Scaled(torch.full((3, 5000), 127, dtype=torch.int8), torch.ones(3))
    w.data[1, ::2] = -127
    w.data[2, 17] = 126
    x = torch.full((2, 5000), 1.0)
    x[1, 0] = -1
    assert torch.equal(kernels.linear(x, w, backend=backend), int8_product(x, w))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 3, 21, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_linear_equals_integer_sums_times_scales(backend, width, rows, dtype):
    x, w = torch.randn(rows, width).to(dtype), quantize_int4(torch.randn(35, width))
    got, expected = kernels.linear(x, w, backend=backend), int4_product(x, w)
    assert got.dtype == dtype
    atol = (5e-7 if dtype == torch.float32 else 4e-3) * float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 4, 21])
def test_int4_sums_are_exact_where_scales_are_powers_of_two(backend, width, rows):
    x, w = torch.randn(rows, width), quantize_int4(torch.randn(35, width))
    powers = torch.randint(-2, 3, w.scale.shape).float().exp2() * torch.randn(w.scale.shape).sign()
    w = Scaled(w.data, powers.half())
    assert torch.equal(kernels.linear(x, w, backend=backend), int4_product(x, w).float())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("tokens", [1, 6, 90])
def test_experts_are_the_sum_of_each_alone(backend, quantize, tokens):
    x, up, down = torch.randn(tokens, 64), quantize(torch.randn(5, 96, 64)), quantize(torch.randn(5, 64, 96))
    ids, weights = torch.rand(tokens, 5).topk(2).indices, torch.rand(tokens, 2)
    got = kernels.grouped_mlp(x, up, down, ids, weights, backend=backend)
    for token in range(tokens):
        parts = [
            w * kernels.squared_relu_mlp(x[token : token + 1], up[e], down[e], backend="reference")[0]
            for e, w in zip(ids[token].tolist(), weights[token], strict=True)
        ]
        expected = torch.stack(parts).sum(0)
        # A hidden number at the edge between two integers may fall to the other side.
        torch.testing.assert_close(got[token], expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("rows", [1, 7, 90])
def test_squared_relu_mlp_takes_them(backend, quantize, rows):
    x, up, down = torch.randn(rows, 64), quantize(torch.randn(96, 64)), quantize(torch.randn(64, 96))
    product = int8_product if quantize is quantize_int8 else int4_product
    hidden = product(x, up).float().relu().square()
    for given, expected in ((down, product(hidden, down)), (down.dequantized(), hidden @ down.dequantized().T)):
        got = kernels.squared_relu_mlp(x, up, given, backend=backend)
        torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_gradients_are_those_of_the_matrix(quantize):
    w, dout = quantize(torch.randn(21, 64)), torch.randn(5, 21, dtype=torch.float64)
    for backend in BACKENDS:
        x = torch.randn(5, 64, dtype=torch.float64).requires_grad_()
        kernels.linear(x, w, backend=backend).backward(dout)
        torch.testing.assert_close(x.grad, dout @ w.dequantized(torch.float64))


def test_scales_that_do_not_fit_are_refused():
    data = torch.zeros(4, 64, dtype=torch.int8)
    for scale in (torch.ones(()), torch.ones(64), torch.ones(4).half()):
        with pytest.raises(ValueError, match=r"\(4, 64\) int8 has scale .*; it must be \(4,\) of float32"):
            Scaled(data, scale)
    for scale in (torch.ones(4, 2).half(), torch.ones(4, 4)):
        with pytest.raises(ValueError, match=r"\(4, 64\) uint8 has scale .*; it must be \(4, 4\) of float16"):
            Scaled(data.to(torch.uint8), scale)
    with pytest.raises(ValueError, match="takes no input_scale"):
        Scaled(data, torch.ones(4), torch.tensor(1.0))
