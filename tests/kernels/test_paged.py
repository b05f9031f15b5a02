import pytest
import torch

from nano3 import kernels


def paged(key_lengths, query_lengths, *, page=4, Hq=4, Hkv=2, D=8, dtype=torch.float64, shuffle=True):
    """Random pages with what no sequence owns set to nan, so that reading it shows."""
    counts = [-(-keys // page) for keys in key_lengths]
    total = sum(counts) + 3
    order = torch.randperm(total) if shuffle else torch.arange(total)
    keys, values = (torch.full((total, page, Hkv, D), torch.nan, dtype=dtype) for _ in range(2))
    table = torch.zeros(len(counts), max(counts, default=0) + 1, dtype=torch.int64)
    used = 0
    for row, (length, count) in enumerate(zip(key_lengths, counts, strict=True)):
        table[row, :count] = order[used : used + count]
        for position in range(length):
            spot = (table[row, position // page], position % page)
            keys[spot], values[spot] = torch.randn(2, Hkv, D, dtype=dtype)
        used += count
    q = torch.randn(sum(query_lengths), Hq, D, dtype=dtype)
    return q, keys, values, table, query_lengths, key_lengths


CASES = [
    ([5], [1]),
    ([1, 9, 3], [1, 1, 1]),
    ([40, 3, 9, 200], [1, 1, 1, 1]),
    ([12], [12]),
    ([17], [6]),
    ([16], [5]),
    ([8, 30, 4, 11], [1, 7, 4, 1]),
    ([6, 5], [0, 1]),
]


@pytest.mark.parametrize(("key_lengths", "query_lengths"), CASES)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("eager", torch.float64, 1e-9), (None, torch.float32, 2e-5)]
)
def test_paged_attention_equals_reference(key_lengths, query_lengths, shuffle, backend, dtype, tolerance):
    case = paged(key_lengths, query_lengths, shuffle=shuffle, dtype=dtype)
    got, expected = (kernels.paged_attention(*case, backend=name) for name in (backend, "reference"))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_keys_in_blocks_give_the_same(monkeypatch):
    monkeypatch.setattr("nano3.kernels.eager.paged.BLOCK_KEYS", 8)
    case = paged([50, 31, 9], [1, 9, 1])
    eager, expected = (kernels.paged_attention(*case, backend=name) for name in ("eager", "reference"))
    torch.testing.assert_close(eager, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "reference", None])
@pytest.mark.parametrize("query_lengths", [[1, 1, 1], [1, 9, 12]])
def test_pages_of_another_type_are_read_as_the_queries_are(backend, query_lengths):
    q, keys, values, *rest = paged([50, 31, 12], query_lengths, dtype=torch.bfloat16)
    got = kernels.paged_attention(q.float(), keys, values, *rest, backend=backend)
    assert got.dtype == torch.float32
    expected = kernels.paged_attention(q.float(), keys.float(), values.float(), *rest, backend="reference")
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["eager", None])
def test_bfloat16_stays_close(backend):
    case = paged([50, 31, 9, 12], [1, 9, 1, 12], dtype=torch.bfloat16)
    got, expected = (kernels.paged_attention(*case, backend=name) for name in (backend, "reference"))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", ["eager", None])
def test_a_long_sequence_needs_no_quadratic_memory(largest_tensor, backend):
    case = paged([3000], [1000], Hq=1, Hkv=1, dtype=torch.float32, shuffle=False)
    with largest_tensor() as seen:
        kernels.paged_attention(*case, backend=backend)
    assert seen.elements <= 3000 * 16


@pytest.mark.parametrize("lengths", [([5], [2]), ([5, 5], [1]), ([0], [1]), ([50], [1])])
def test_lengths_that_do_not_fit_are_refused(lengths):
    q, keys, values, table, _, _ = paged([5], [1])
    with pytest.raises(ValueError, match="paged_attention"):
        kernels.paged_attention(q, keys, values, table, lengths[1], lengths[0])
