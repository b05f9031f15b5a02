"""Routed experts in Triton on a GPU, in bfloat16 at the 30B model's shapes."""

import pytest
import torch
from nano3.kernels import Scaled

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]
E, F, D, K = 128, 1856, 2688, 6


@pytest.fixture(scope="module")
def matrices():
    g = torch.Generator("cuda").manual_seed(0)
    shapes = (E, F, D), (E, D, F)
    return [(torch.randn(s, generator=g, device="cuda") * s[2] ** -0.5).bfloat16() for s in shapes]


def choices(tokens, seed):
    g = torch.Generator().manual_seed(seed)
    wanted = torch.rand(tokens, E, generator=g) + torch.linspace(0, 0.5, E)
    wanted[:, 7] = -1  # has no token
    ids, weights = wanted.topk(K).indices.cuda(), torch.rand(tokens, K, generator=g).cuda()
    return torch.randn(tokens, D, generator=g).bfloat16().cuda(), ids, weights


@pytest.mark.parametrize("tokens", [1, 3, 64, 256, 700, 2049])
def test_grouped_mlp(tokens, matrices, assert_close):
    x, ids, weights = choices(tokens, tokens)
    got = kernels.grouped_mlp(x, *matrices, ids, weights, backend="triton")
    assert_close(got, kernels.grouped_mlp(x.double(), *matrices, ids, weights, backend="reference"), 1e-2)
    assert torch.equal(got, kernels.grouped_mlp(x, *matrices, ids, weights, backend="triton"))


def test_a_graph_reads_the_choices_at_each_replay(matrices, assert_close):
    x, ids, weights = choices(64, 0)
    kernels.grouped_mlp(x, *matrices, ids, weights, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernels.grouped_mlp(x, *matrices, ids, weights, backend="triton")
    for change in (lambda: ids.copy_(ids.flip(0)), lambda: ids.copy_(torch.arange(K).expand(64, K))):
        change()
        graph.replay()
        expected = kernels.grouped_mlp(x.double(), *matrices, ids, weights, backend="reference")
        assert_close(got, expected, 1e-2)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="this GPU multiplies no e4m3"
)
@pytest.mark.parametrize("tokens", [1, 64, 256, 700, 2049])
def test_e4m3(tokens, assert_close):
    """Against the emulation of the reference, which rounds where the kernels do."""
    g = torch.Generator("cuda").manual_seed(0)
    data = [(60 * torch.randn(s, generator=g, device="cuda")).to(torch.float8_e4m3fn) for s in ((E, F, D), (E, D, F))]
    scales = torch.linspace(2e-4, 4e-4, E, device="cuda")
    up, down = (Scaled(m, scales, torch.tensor(0.01, device="cuda")) for m in data)
    x, ids, weights = choices(tokens, tokens)
    got = kernels.grouped_mlp(x, up, down, ids, weights, backend="triton")
    assert_close(got, kernels.grouped_mlp(x, up, down, ids, weights, backend="reference"), 1e-2)
    assert torch.equal(got, kernels.grouped_mlp(x, up, down, ids, weights, backend="triton"))
