"""Attention over pages in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch

from nano3 import kernels

MOST = {torch.float32: 2e-6, torch.float16: 2e-3}
E4M3 = torch.float8_e4m3fn


def paged(counts, Hq, Hkv, D, page, dtype, room):
    """Pages in a random order with nan wherever no sequence has written, all of page 0 included, and a table that names
    no page behind each sequence's last; room: pages that a row of the table can hold."""
    used = [-(-count // page) for count in counts]
    order, start = 1 + torch.randperm(sum(used) + 2), 0
    keys, values = (torch.full((len(order) + 1, page, Hkv, D), torch.nan, dtype=dtype) for _ in range(2))
    table = torch.full((len(counts), room), 1 << 30, dtype=torch.int32)
    for row, (count, pages) in enumerate(zip(counts, used, strict=True)):
        own = order[start : start + pages]
        table[row, :pages] = own
        for m in (keys, values):
            flat = m[own].flatten(0, 1)
            flat[:count] = torch.randn(count, Hkv, D).to(dtype)
            m[own] = flat.view(-1, page, Hkv, D)
        start += pages
    return torch.randn(len(counts), Hq, D).to(dtype), keys, values, table, torch.tensor(counts)


def wide(tensors):
    return [t.double() if t.is_floating_point() else t for t in tensors]


@pytest.mark.usefixtures("poisoned", "no_eager")
@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("counts", "sizes", "room"),
    [
        ([0, 1, 8, 190], (6, 2, 24, 8), 30),
        pytest.param([64, 63, 0], (16, 1, 128, 64), 1, marks=pytest.mark.slow),  # one share a sequence
        pytest.param([63, 64, 257], (32, 2, 128, 64), 6, marks=pytest.mark.slow),
        pytest.param([500], (2, 2, 7, 3), 200, marks=pytest.mark.slow),
        pytest.param([0], (4, 1, 16, 4), 40, marks=pytest.mark.slow),
    ],
)
def test_paged_decode(counts, sizes, room, dtype, assert_close):
    case = paged(counts, *sizes, dtype=dtype, room=room)
    got = kernels.paged_decode(*case, backend="triton")
    assert got.dtype == dtype
    assert_close(got, kernels.paged_decode(*wide(case), backend="reference"), MOST[dtype])
    for row, count in enumerate(counts):
        assert count or not got[row].any()


@pytest.mark.usefixtures("poisoned", "no_eager")
@pytest.mark.parametrize("dtype", MOST)
def test_pages_of_e4m3_times_their_scales(dtype, assert_close):
    q, keys, values, table, counts = paged([140, 0, 5], 4, 2, 16, 4, torch.float32, 40)
    pages = [m.to(E4M3) for m in (keys, values)]
    scales = torch.tensor(0.37), torch.tensor(2.5)
    got = kernels.paged_decode(q.to(dtype), *pages, table, counts, *scales, backend="triton")
    expected = kernels.paged_decode(q.to(dtype).double(), *pages, table, counts, *scales, backend="reference")
    assert_close(got, expected, MOST[dtype])


@pytest.mark.usefixtures("poisoned", "no_eager")
def test_float32_queries_read_float16_pages(assert_close):
    q, keys, values, table, counts = paged([70, 3], 4, 2, 16, 4, torch.float16, 40)
    got = kernels.paged_decode(q.float(), keys, values, table, counts, backend="triton")
    assert got.dtype == torch.float32
    expected = kernels.paged_decode(*wide((q, keys, values, table, counts)), backend="reference")
    assert_close(got, expected, 2e-6)


@pytest.mark.usefixtures("poisoned", "no_eager")
@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("queries", "keys", "sizes"),
    [
        ([2, 1, 0, 9], [2, 70, 5, 12], (4, 2, 24, 4)),
        pytest.param([1, 1], [9, 70], (4, 2, 16, 8), marks=pytest.mark.slow),
        pytest.param([200, 3], [200, 130], (2, 1, 128, 64), marks=pytest.mark.slow),
        pytest.param([129], [300], (3, 3, 7, 5), marks=pytest.mark.slow),
    ],
)
def test_paged_attention_of_one_and_several_queries(queries, keys, sizes, dtype, assert_close):
    _, *pages, table, _ = paged(keys, *sizes, dtype=dtype, room=80)
    q = torch.randn(sum(queries), sizes[0], sizes[2] + 1).to(dtype)[..., :-1]
    got = kernels.paged_attention(q, *pages, table, queries, keys, backend="triton")
    table = table.masked_fill(table == 1 << 30, 0).long()  # the reference reads and drops them
    expected = kernels.paged_attention(*wide((q, *pages)), table, queries, keys, backend="reference")
    assert got.dtype == dtype
    assert_close(got, expected, MOST[dtype])


@pytest.mark.usefixtures("no_eager")
def test_float32_heads_that_need_more_shared_memory_than_smaller_gpus_have_go_to_pytorch():
    q, keys, table, counts = torch.randn(1, 64, 256), torch.randn(1, 4, 1, 256), torch.zeros(1, 1).int(), torch.ones(1)
    with pytest.raises(AssertionError, match="paged_decode went to the eager backend"):
        kernels.paged_decode(q, keys, keys, table, counts.int(), backend="triton")
    got = kernels.paged_decode(q.half(), keys, keys, table, counts.int(), backend="triton")
    torch.testing.assert_close(got, keys[0, :1].half().expand(1, 64, 256))
