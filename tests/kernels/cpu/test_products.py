"""The product of few rows, in C++: every path of its tiles, and an order of summation that depends on nothing else."""

import pytest
import torch
from nano3.kernels.cpu.native import native

from nano3 import kernels

TYPES = [torch.float32, torch.bfloat16]


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def off(got, x, weight):
    """Largest error relative to the sum of absolute products, which bounds the rounding."""
    exact = x.double() @ weight.double().T
    return float(((got.double() - exact).abs() / (x.double().abs() @ weight.double().abs().T + 1e-30)).max())


@pytest.mark.parametrize("weight_type", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 25, 32, 64])
@pytest.mark.parametrize(("outputs", "width"), [(1, 3), (3, 32), (4, 16), (9, 257), (67, 1023), (64, 1024), (6, 2100)])
@torch.inference_mode()
def test_every_size_of_tile_and_pass(weight_type, rows, outputs, width):
    x, weight = torch.randn(rows, width), torch.randn(outputs, width).to(weight_type)
    assert off(kernels.linear(x, weight), x, weight) < 1e-6


@pytest.mark.parametrize("rows", [1, 3, 4, 17, 64])
@torch.inference_mode()
def test_narrow_weights_are_widened_for_float32_rows_whatever_the_op_is(rows):
    x, up, down = torch.randn(rows, 72), torch.randn(2, 100, 72).bfloat16(), torch.randn(2, 72, 100).bfloat16()
    each = [(x.double() @ up[e].double().T).relu().square() @ down[e].double().T for e in range(2)]
    gates = torch.rand(rows, 2)
    ids = torch.arange(2).expand(rows, 2).contiguous()
    for got, exact in (
        (kernels.squared_relu_mlp(x, up[0], down[0]), each[0]),
        (kernels.grouped_mlp(x, up, down, ids, gates), sum(gates[:, e : e + 1].double() * each[e] for e in range(2))),
    ):
        assert float((got.double() - exact).abs().max() / exact.abs().max()) < 2e-6


@pytest.mark.parametrize("rows", [1, 3, 4, 17, 64])
@pytest.mark.parametrize(("outputs", "width"), [(9, 257), (64, 1024), (40, 2100)])
@torch.inference_mode()
def test_rows_of_bfloat16(rows, outputs, width):
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(outputs, width).bfloat16()
    assert off(kernels.linear(x, weight), x, weight) < 4e-3


@pytest.mark.parametrize("weight_type", TYPES)
@pytest.mark.parametrize("width", [16, 200, 1500])
@torch.inference_mode()
def test_a_row_has_the_same_result_whatever_it_is_computed_with(weight_type, width):
    x, weight = torch.randn(3, width), torch.randn(150, width).to(weight_type)
    others = torch.randn(29, width)
    same = torch.equal if native().library else close
    few = kernels.linear(x, weight)
    assert same(few, torch.cat([kernels.linear(row, weight) for row in x.split(1)]))
    assert same(few, kernels.linear(torch.cat([others, x]), weight)[29:])
    for start, stop in ((20, 33), (7, 11), (9, 12), (149, 150)):
        assert same(few[:, start:stop], kernels.linear(x, weight[start:stop]))


@pytest.mark.parametrize("rows", [1, 3, 14])
@torch.inference_mode()
def test_nothing_beyond_the_matrices_is_read_or_written(rows):
    x, weight = torch.full((rows + 2, 37), torch.nan), torch.full((13, 37), torch.nan).bfloat16()
    x[1:-1], weight[2:-2] = 1.0, 0.5
    y = kernels.linear(x[1:-1], weight[2:-2])
    assert torch.equal(y, torch.full((rows, 9), 18.5))
