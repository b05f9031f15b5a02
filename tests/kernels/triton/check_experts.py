"""Routed experts in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch
from nano3.kernels import Scaled
from nano3.kernels.eager import FUNCTIONS as EAGER
from nano3.kernels.triton import experts
from nano3.kernels.triton.compiled import recorded

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")
MOST = {torch.float32: 1e-6, torch.float16: 2e-3}
E4M3 = torch.float8_e4m3fn
EMPTY = 2
"""An expert that no token chooses."""


def inputs(S, E, D, F, K, dtype):
    """x and the matrices are parts of wider ones; the first experts get several times the last ones' choices."""
    x, up, down = torch.randn(S, D + 3)[:, 1 : D + 1], torch.randn(E, F + 2, D)[:, 1:-1], torch.randn(E, D, F)
    wanted = torch.rand(S, E) + torch.linspace(1, 0, E)
    wanted[:, EMPTY] = -1
    ids, weights = wanted.topk(K).indices, torch.randn(S, K + 1)[:, :K]
    return x.to(dtype), (up * D**-0.5).to(dtype), (down * F**-0.5).to(dtype), ids, weights


def check(given, assert_close):
    x, up, down, ids, weights = given
    got = kernels.grouped_mlp(*given, backend="triton")
    assert got.dtype == x.dtype
    expected = kernels.grouped_mlp(x.double(), up.double(), down.double(), ids, weights, backend="reference")
    assert_close(got, expected, MOST[x.dtype])


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("S", "E", "D", "F", "K"),
    [
        (7, 5, 35, 70, 2),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [
            (1, 9, 40, 33, 6), (60, 7, 150, 140, 2), (90, 3, 150, 140, 2), (160, 3, 150, 140, 2),
        ]),
    ],
)  # fmt: skip
def test_experts(S, E, D, F, K, dtype, assert_close):
    """On average 2.8 choices an expert, 0.7, 17, 60, 107."""
    check(inputs(S, E, D, F, K, dtype), assert_close)


@pytest.mark.parametrize(
    ("S", "E", "D", "F", "K"),
    [
        (7, 5, 36, 80, 2),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [
            (60, 7, 150, 140, 2), (90, 3, 150, 140, 2), (160, 3, 150, 140, 2),
        ]),
    ],
)  # fmt: skip
def test_e4m3(S, E, D, F, K, assert_close):
    """Each product is one of four terms, 0 to 4: the interpreter rounds to e4m3 wrongly where a bit is carried into the
    exponent and half-way between two numbers, and none of these squares needs either."""
    x, _, _, ids, weights = inputs(S, E, D, F, K, torch.float16)
    x = x.round().clamp(-1, 1) / 4
    x[0, 0] = 60000  # beyond 448 times its scale
    x = x.T.contiguous().T
    places = torch.rand(E, F, D - 1).topk(4).indices + 1
    up = torch.zeros(E, F, D).scatter_(2, places, torch.randn(E, F, 4).sign()).to(E4M3)
    down = (torch.randn(E, D, F) * 60).to(E4M3)
    scales = 4.0 * 2 ** torch.arange(E).remainder(3)
    given = (
        Scaled(up, scales, torch.tensor(0.25)),
        Scaled(down, scales / 300, torch.tensor(1 / 16)),
    )  # squares above 28 are cut off
    got = kernels.grouped_mlp(x, *given, ids, weights, backend="triton")
    assert got.dtype == torch.float16
    expected = kernels.grouped_mlp(x.double(), *given, ids, weights, backend="reference")
    assert_close(got, expected, MOST[torch.float16])


@pytest.mark.parametrize("odd", ["inputs", "gradient", "one"])
def test_e4m3_that_goes_to_pytorch(odd, monkeypatch):
    x, _, _, ids, weights = inputs(2, 3, 16, 16, 1, torch.float16)
    up, down = (Scaled(torch.randn(3, 16, 16).to(E4M3), torch.ones(3), torch.tensor(1.0)) for _ in range(2))
    if odd == "inputs":
        down = Scaled(down.data, down.scale)
    if odd == "one":
        down = down.dequantized(torch.float16)
    monkeypatch.setitem(EAGER, "grouped_mlp", lambda *_: "PyTorch")
    x.requires_grad_(odd == "gradient")
    assert kernels.grouped_mlp(x, up, down, ids, weights, backend="triton") == "PyTorch"


@pytest.mark.slow
def test_more_choices_than_are_sorted_at_a_time(assert_close):
    check(inputs(66, 34, 16, 16, 32, torch.float16), assert_close)


@pytest.mark.slow
def test_the_widths_of_the_30b(assert_close):
    x, up, down, _, weights = inputs(2, 3, 2688, 1856, 1, torch.float16)
    check((x, up, down, torch.tensor([[1], [1]]), weights), assert_close)


def test_an_expert_that_is_not_there_makes_nan_of_its_token_alone():
    x, up, down, ids, weights = inputs(4, 5, 16, 16, 2, torch.float32)
    expected = kernels.grouped_mlp(x, up, down, ids, weights, backend="reference")
    ids[1, 0], ids[3, 1] = 5, -1
    got = kernels.grouped_mlp(x, up, down, ids, weights, backend="triton")
    assert got[[1, 3]].isnan().all()
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])


def test_nan_is_no_zero():
    x, up, down, ids, weights = inputs(3, 5, 16, 16, 2, torch.float32)
    x[1, 3] = torch.nan
    got = kernels.grouped_mlp(x, up, down, ids, weights, backend="triton")
    assert got.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("e4m3", [False, True])
@pytest.mark.parametrize("tokens", [1, 4000])
def test_nothing_waits_for_values(tokens, e4m3):
    """On the meta device nothing has one: a CUDA graph can hold the launches, whatever experts its tokens choose."""
    x, *matrices, ids, weights = (t.to("meta") for t in inputs(tokens, 5, 16, 16, 2, torch.float16))
    if e4m3:
        scales, scale = torch.ones(5, device="meta"), torch.ones((), device="meta")
        matrices = [Scaled(m.to(E4M3), scales, scale) for m in matrices]
    with recorded() as launches:
        experts.grouped_mlp(x, *matrices, ids, weights)
    names = [launch.kernel.fn.__name__ for launch in launches]
    assert names == ["sort_kernel", "product_kernel", "product_kernel", "sum_kernel"]
