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


def decoding(counts, **options):
    """Arguments of paged_decode: `paged` with one query each, counts of 0 among them, and no page behind the last."""
    q, keys, values, table, *_ = paged(counts, [1] * len(counts), **options)
    for row, count in enumerate(counts):
        table[row, -(-count // keys.shape[1]) :] = -(1 << 20)
    return q, keys, values, table, torch.tensor(counts)


@pytest.mark.parametrize("counts", [[5], [1, 9, 3], [40, 0, 3, 8, 200], [0, 0]])
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize("backend", ["eager", "reference", None])
def test_decoding_over_pages_equals_attention_of_each_sequence(counts, integers, backend):
    q, keys, values, table, lengths = decoding(counts)
    got = kernels.paged_decode(q, keys, values, table.to(integers), lengths.to(integers), backend=backend)
    for row, count in enumerate(counts):
        k, v = (m[table[row, : -(-count // 4)]].flatten(0, 1)[None, :count] for m in (keys, values))
        expected = kernels.attention(q[None, row : row + 1], k, v, backend="reference")[0, 0] if count else 0 * q[row]
        torch.testing.assert_close(got[row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "reference", None])
def test_pages_of_e4m3_are_read_times_their_scales(backend):
    q, keys, values, table, counts = decoding([9, 0, 4], dtype=torch.float32)
    pages = [m.nan_to_num(448).to(torch.float8_e4m3fn) for m in (keys, values)]
    scales = torch.tensor(0.37), torch.tensor(2.5)
    got = kernels.paged_decode(q, *pages, table, counts, *scales, backend=backend)
    wide = [m.double() * scale.double() for m, scale in zip(pages, scales, strict=True)]
    expected = kernels.paged_decode(q.double(), *wide, table, counts, backend="reference")
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_tables_and_counts_that_do_not_fit_are_refused():
    q, keys, values, table, counts = decoding([5, 3])
    for wrong in ((q[:1], keys, values, table, counts), (q, keys, values, table, counts[:1]),
                  (q[..., :4], keys, values, table, counts), (q, keys, values, table, counts.float()),
                  (q[:, :3], keys, values, table, counts)):  # fmt: skip
        with pytest.raises(ValueError, match="paged_decode"):
            kernels.paged_decode(*wrong)
