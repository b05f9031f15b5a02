"""Attention over pages in Triton on a GPU, in bfloat16 and e4m3 at the 30B model's shapes."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]
Hq, Hkv, D, PAGE = 32, 2, 128, 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("counts", [[8192], [0, 1, 63, 64, 65, 4000], [257] * 300])
def test_paged_decode(counts, dtype, assert_close):
    used = [-(-count // PAGE) for count in counts]
    order, table, start = torch.randperm(sum(used)), torch.full((len(counts), 128), 1 << 30, dtype=torch.int32), 0
    for row, pages in enumerate(used):
        table[row, :pages] = order[start : start + pages]
        start += pages
    keys, values = (torch.randn(sum(used), PAGE, Hkv, D) for _ in range(2))
    for row, (count, pages) in enumerate(zip(counts, used, strict=True)):
        for m in (keys, values):
            m[table[row, :pages][-1:].long(), (count - 1) % PAGE + 1 :] = torch.nan
    keys, values = keys.to(dtype), values.to(dtype)
    q, lengths = torch.randn(len(counts), Hq, D).bfloat16(), torch.tensor(counts, dtype=torch.int32)
    scales = (torch.tensor(0.4), torch.tensor(2.5)) if dtype == torch.float8_e4m3fn else ()
    inputs = [t.cuda() for t in (q, keys, values, table, lengths, *scales)]
    got = kernels.paged_decode(*inputs, backend="triton")
    assert_close(got, kernels.paged_decode(inputs[0].double(), *inputs[1:], backend="reference"), 1e-2)


def test_a_graph_reads_lengths_at_each_replay(assert_close):
    keys, values = torch.randn(2, 16, PAGE, Hkv, D).bfloat16().cuda()
    q, table = torch.randn(2, Hq, D).bfloat16().cuda(), torch.arange(16, dtype=torch.int32).view(2, 8).cuda()
    counts = torch.tensor([1, 1], dtype=torch.int32).cuda()
    kernels.paged_decode(q, keys, values, table, counts, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernels.paged_decode(q, keys, values, table, counts, backend="triton")
    for lengths in ([500, 0], [1, 512]):
        counts.copy_(torch.tensor(lengths))
        graph.replay()
        expected = kernels.paged_decode(q.double(), keys, values, table, counts, backend="reference")
        assert_close(got, expected, 1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_paged_attention_of_one_and_several_queries(dtype, assert_close):
    queries, lengths = [300, 1, 130, 1], [300, 700, 1000, 64]
    table = torch.randperm(64).view(4, 16)
    pages = [torch.randn(64, PAGE, Hkv, D).to(dtype) for _ in range(2)]
    q = torch.randn(sum(queries), Hq, D).bfloat16()
    inputs = [t.cuda() for t in (q, *pages, table)]
    got = kernels.paged_attention(*inputs, queries, lengths, backend="triton")
    expected = kernels.paged_attention(inputs[0].double(), *inputs[1:], queries, lengths, backend="reference")
    assert_close(got, expected, 1e-2)
