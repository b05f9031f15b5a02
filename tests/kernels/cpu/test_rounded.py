"""Products of integers and of e4m3 numbers in C++, at every level that this machine can run; and decoding with them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from nano3.kernels import Scaled, quantize_int4, quantize_int8
from nano3.kernels.cpu import call, dense, native, ops
from nano3.kernels.cpu.native import BASES, NEEDS, Native
from nano3.kernels.cpu.program import decode
from nano3.kernels.cpu.program.check import SIZES, Case
from nano3.kernels.cpu.rounded import products as rounded
from nano3.kernels.scaled import E4M3

from nano3 import kernels
from tests.kernels.cpu.program_cases import WIDE, same, step
from tests.kernels.test_integers import int4_product, int8_product

ROUND = replace(WIDE, F=96)
"""Every row divides into groups of 32."""


def quantize_e4m3(matrix, inputs=True):
    """With one scale a matrix, and one for the activations of all tokens."""
    scale = matrix.float().abs().amax((-2, -1)) / 448
    data = (matrix.float() / (scale[:, None, None] if matrix.dim() == 3 else scale)).to(E4M3)
    return Scaled(data, scale, torch.tensor(0.011) if inputs else None)


FORMATS = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "e4m3": quantize_e4m3,
    "e4m3 weights": partial(quantize_e4m3, inputs=False),
}


def levels():
    """Those that this machine can run."""
    library, _ = native._load()
    flags = native.cpu_flags()
    return [name for name, needs in NEEDS.items() if library and needs <= flags and native._allowed(library, name)]


@pytest.fixture(params=levels())
def level(request, monkeypatch):
    """That level for the length of a test."""
    chosen = Native(native._load()[0], request.param, "")
    for module in (call, dense, rounded, decode):
        monkeypatch.setattr(module, "native", lambda: chosen)
    for base in set(BASES.values()) & set(levels()):
        monkeypatch.setattr(rounded, "problem", lambda: None)
        getattr(chosen.library, f"nano3_use_vnni_{base}")(int(BASES.get(request.param) == base))
    call._function.cache_clear()
    yield request.param
    call._function.cache_clear()
    native.native.__wrapped__()  # sets the library as it was


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 17, 40, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_int8_sums_are_exact_at_every_level(rows, dtype):
    for outputs, width in [(1, 1), (5, 31), (16, 64), (35, 100), (64, 1029), (83, 2500)]:
        x, w = torch.randn(rows, width).to(dtype), quantize_int8(torch.randn(outputs, width))
        assert torch.equal(rounded.linear(x, w), int8_product(x, w)), (outputs, width)


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_int8_extremes_are_exact_at_every_level():
    w = Scaled(torch.full((35, 3000), 127, dtype=torch.int8), torch.ones(35))
    w.data[::2] = -127
    w.data[7, 1::2] = -128  # other programs may use it
    for rows in (1, 20):
        x = torch.ones(rows, 3000)
        x[0, ::2] = -1
        assert torch.equal(rounded.linear(x, w), int8_product(x, w))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 17, 40, 150])
@torch.inference_mode()
def test_int4_sums_are_exact_at_every_level(rows):
    for outputs, width in [(1, 32), (2, 64), (5, 96), (35, 128), (64, 1056), (19, 4160)]:
        x, w = torch.randn(rows, width), quantize_int4(torch.randn(outputs, width))
        expected = int4_product(x, w)
        atol = 5e-7 * float(expected.abs().max())
        torch.testing.assert_close(rounded.linear(x, w).double(), expected, rtol=0, atol=atol)
        powers = Scaled(w.data, torch.randint(-2, 3, w.scale.shape).float().exp2().half())
        if width < 2000:  # beyond, a sum may need more digits than float32 has
            assert torch.equal(rounded.linear(x, powers), int4_product(x, powers).float())


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", ["int8", "int4", "e4m3", "e4m3 weights"])
@torch.inference_mode()
def test_nan_stays_in_its_row(name):
    for width in (96, 160):
        w, x = FORMATS[name](torch.randn(35, width)), torch.randn(50, width)
        clean = rounded.linear(x, w)
        x[37, 5] = torch.nan
        x[49, width - 1] = torch.nan
        y = rounded.linear(x, w)
        assert y[[37, 49]].isnan().all()
        others = [row for row in range(50) if row not in (37, 49)]
        assert torch.equal(y[others], clean[others])


def numbers_of_e4m3():
    """All 254 numbers, and as many outputs."""
    codes = torch.tensor([c for c in range(256) if c & 127 != 127], dtype=torch.uint8)
    return torch.diag_embed(codes.view(E4M3).float()).to(E4M3)


@torch.inference_mode()
def test_every_e4m3_number_is_read(level):
    data = numbers_of_e4m3()
    w = Scaled(data, torch.tensor(0.5))
    for rows in (1, 5, 20):
        x = torch.ones(rows, 254)
        for dtype in (torch.float32, torch.bfloat16):
            got, expected = rounded.linear(x.to(dtype), w).float(), 0.5 * data.float().diagonal()
            subnormal = expected.abs() < 0.5 * 2**-6
            flushed = dtype == torch.bfloat16 and level in native.ROUNDING
            assert torch.equal(got[:, ~subnormal], expected[~subnormal].expand(rows, -1))
            assert torch.equal(got[:, subnormal], 0 * got[:, subnormal] if flushed else
                               expected[subnormal].expand(rows, -1))  # fmt: skip


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 7, 40, 70])
@torch.inference_mode()
def test_e4m3_products_at_every_level(level, rows, inputs):
    for outputs, width in [(5, 31), (35, 100), (64, 1029), (16, 64)]:
        w = quantize_e4m3(torch.randn(outputs, width), inputs)
        for factor in (1.0, 1e-20, 1e20) if not inputs else (1.0, 100.0, 1e-3):
            for dtype in (torch.float32, torch.bfloat16):
                x = (torch.randn(rows, width) * factor).to(dtype)
                got = rounded.linear(x, w).double()
                expected = kernels.linear(x.float(), w, backend="reference").double()
                atol = (2e-5 if dtype == torch.float32 else 6e-3) * float(expected.abs().max())
                torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 6, 70])
@torch.inference_mode()
def test_mlps_and_experts_at_every_level(name, rows):
    x, quantize = torch.randn(rows, 64), FORMATS[name]
    up, down = quantize(torch.randn(96, 64)), quantize(torch.randn(64, 96) / 30)
    expected = kernels.squared_relu_mlp(x, up, down, backend="reference")
    same(rounded.squared_relu_mlp(x, up, down), expected, 2e-2)
    up, down = quantize(torch.randn(5, 96, 64)), quantize(torch.randn(5, 64, 96) / 30)
    ids, weights = torch.rand(rows, 5).topk(2).indices, torch.rand(rows, 2)
    expected = kernels.grouped_mlp(x, up, down, ids, weights, backend="reference")
    same(rounded.grouped_mlp(x, up, down, ids, weights), expected, 2e-2)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_experts_of_many_rows_beside_some_of_few(name):
    quantize, x = FORMATS[name], torch.randn(90, 64)
    up, down = quantize(torch.randn(5, 96, 64)), quantize(torch.randn(5, 64, 96) / 30)
    ids = torch.tensor([[0, 3]] * 70 + [[3, 1]] * 17 + [[4, 0]] * 3)
    weights = torch.rand(90, 2)
    expected = kernels.grouped_mlp(x, up, down, ids, weights, backend="reference")
    same(rounded.grouped_mlp(x, up, down, ids, weights), expected, 2e-2)


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_an_expert_that_does_not_exist_is_an_error():
    up, down = quantize_int8(torch.randn(5, 96, 64)), quantize_int8(torch.randn(5, 64, 96))
    with pytest.raises(IndexError):
        ops.FUNCTIONS["grouped_mlp"](torch.randn(2, 64), up, down, torch.tensor([[1, 5], [0, 2]]), torch.rand(2, 2))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lengths", [(5,), (10, 4), tuple(range(1, 34))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_decoding_step_takes_them(name, lengths, dtype):
    for sizes in (ROUND,) if name == "int4" else (ROUND, SIZES):
        case = Case(sizes, dtype, lengths, quantize=FORMATS[name])
        hidden, logits, _ = step(case, compute=torch.float32)
        expected = case.expected()
        same(hidden, expected[0], 4e-2)
        same(logits, expected[1], 4e-2)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sequences", [6, 33])
@torch.inference_mode()
def test_the_decoding_step_of_bfloat16_activations(name, sequences):
    case = Case(ROUND, torch.bfloat16, tuple(range(1, sequences + 1)), quantize=FORMATS[name])
    hidden, logits, _ = step(case, compute=torch.bfloat16)
    expected = case.expected()
    same(hidden, expected[0], 6e-2)
    same(logits, expected[1], 6e-2)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("lengths", [(5, 9, 4), tuple(range(1, 21))])
@torch.inference_mode()
def test_a_step_may_mix_formats(lengths):
    kinds = [*FORMATS.values(), lambda matrix: matrix]
    count = iter(range(100))

    def quantize(matrix):
        return kinds[next(count) * 2 % len(kinds)](matrix)

    case = Case(ROUND, torch.float32, lengths, quantize=quantize)
    hidden, logits, _ = step(case)
    expected = case.expected()
    same(hidden, expected[0], 4e-2)
    same(logits, expected[1], 4e-2)


@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_a_sequence_does_not_depend_on_those_beside_it(name):
    case = Case(ROUND, torch.float32, tuple(range(1, 34)), quantize=FORMATS[name])
    hidden, logits, _ = step(case)
    for row in (0, 7, 32):
        alone = step(case, slice(row, row + 1))
        assert torch.equal(alone[0][0], hidden[row])
        assert torch.equal(alone[1][0], logits[row])


def test_layouts_that_c_cannot_read_go_to_pytorch():
    w, x = quantize_int8(torch.randn(8, 64)), torch.randn(3, 64)
    apart = Scaled(w.data.t().contiguous().t(), w.scale)
    assert not rounded.fits(apart)
    assert torch.equal(kernels.linear(x, apart), kernels.linear(x, w, backend="reference"))
    each = Scaled(torch.zeros(2, 4, 8).to(E4M3), torch.ones(2), torch.ones(2))
    assert not rounded.fits(each)  # its experts' inputs have scales of their own
