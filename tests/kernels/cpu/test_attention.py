"""Attention of many queries in C++ equals the reference in float64, gradients included."""

from functools import partial

import pytest
import torch
from nano3.kernels.common import matmul_dtype

from nano3 import kernels
from tests.kernels.conftest import assert_same, outputs_and_grads

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
NARROW_TOLERANCE = 5e-2
"""Of PyTorch's bfloat16 products, which round each query head's gradient before those of a key head are added."""


def make(B, T, Hq, Hkv, Dh, dtype=torch.float32, S=None):
    shapes = {"q": (B, T, Hq, Dh), "k": (B, S or T, Hkv, Dh), "v": (B, S or T, Hkv, Dh)}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def compare(inputs, document_ids=None):
    wide = {name: m.double() for name, m in inputs.items()}
    call = partial(kernels.attention, document_ids=document_ids)
    got, expected = outputs_and_grads(call, inputs), outputs_and_grads(partial(call, backend="reference"), wide)
    dtype = inputs["q"].dtype
    narrow = dtype == matmul_dtype(dtype, torch.device("cpu")) == torch.bfloat16
    assert_same(got, expected, NARROW_TOLERANCE if narrow else TOLERANCE[dtype])


def documents(*lengths):
    """One row of documents whose ids come back."""
    return torch.repeat_interleave(torch.arange(len(lengths)) % 3, torch.tensor(lengths))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("T", "Hq", "Hkv", "Dh"),
    [(1, 1, 1, 1), (7, 3, 1, 5), (65, 4, 2, 64), (130, 2, 2, 37), (200, 5, 1, 80), (33, 6, 3, 256), (70, 64, 1, 16)],
)
def test_sizes(T, Hq, Hkv, Dh, dtype):
    compare(make(2, T, Hq, Hkv, Dh, dtype))


@pytest.mark.parametrize(("T", "S"), [(1, 100), (3, 70), (60, 300), (64, 65)])
def test_queries_behind_cached_keys(T, S):
    compare(make(2, T, 4, 2, 24, S=S))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("Hq", "Hkv"), [(4, 1), (3, 3)])
def test_documents(Hq, Hkv, dtype):
    ids = torch.stack([documents(1, 1, 100, 2, 64, 130, 2), documents(300), documents(*[10] * 30)])
    compare(make(3, 300, Hq, Hkv, 20, dtype), ids)


def test_documents_equal_calls_of_their_own():
    inputs = make(1, 150, 4, 2, 16)
    whole = kernels.attention(**inputs, document_ids=documents(40, 70, 40).unsqueeze(0))
    for start, stop in ((0, 40), (40, 110), (110, 150)):
        own = kernels.attention(**{name: m[:, start:stop] for name, m in inputs.items()})
        torch.testing.assert_close(whole[:, start:stop], own)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_views_of_any_layout(dtype):
    packed = torch.randn(2, 50, 8 * 12 + 3).to(dtype)
    q, k, v = packed[..., 1 : 8 * 12 + 1].unflatten(-1, (8, 12)).split([4, 2, 2], dim=2)
    compare({"q": q, "k": k, "v": v})
    heads_first = torch.randn(2, 4, 50, 12).to(dtype).transpose(1, 2)
    compare({"q": heads_first, "k": heads_first[:, :, :2], "v": heads_first[:, :, ::2]})
    scattered = torch.randn(2, 50, 12, 4).to(dtype).transpose(2, 3)
    compare({"q": scattered, "k": scattered, "v": scattered})


def test_gradients_of_any_layout():
    inputs = {name: m.requires_grad_() for name, m in make(2, 30, 2, 1, 8).items()}
    dout = torch.randn(2, 30, 8, 2).transpose(2, 3)
    results = []
    for grad in (dout, dout.contiguous(), torch.ones(1).expand(2, 30, 2, 8)):
        results.append(torch.autograd.grad(kernels.attention(**inputs), list(inputs.values()), grad))
    torch.testing.assert_close(results[0], results[1])
    ones = torch.autograd.grad(kernels.attention(**inputs, backend="reference").sum(), list(inputs.values()))
    torch.testing.assert_close(results[2], ones)


@pytest.mark.parametrize("scale", [1e-30, 30.0])
def test_scores_of_any_size(scale):
    inputs = make(1, 90, 2, 1, 16)
    inputs["q"] *= scale
    wide = {name: m.double() for name, m in inputs.items()}
    torch.testing.assert_close(
        kernels.attention(**inputs), kernels.attention(**wide, backend="reference").float(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value):
    inputs = make(2, 200, 4, 2, 16)
    inputs["q"][0, 150, 1, 3] = value
    inputs["k"][1, 100, 1, 5] = torch.nan
    inputs["v"][1, 120, 0, 2] = value
    y = kernels.attention(**inputs)
    assert y[0, 150, 1].isnan().all()
    y[0, 150, 1] = 0
    assert y[0].isfinite().all()
    assert y[1, 100:, 2:].isnan().all()
    assert not y[1, 120:, :2, 2].isfinite().any()


@pytest.mark.parametrize("threads", [2, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    inputs = make(1, 300, 4, 2, 16)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads, threads):
            torch.set_num_threads(count)
            results.append(outputs_and_grads(kernels.attention, inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    assert_same(results[1], results[0], 1e-5)


def test_second_derivatives_are_refused():
    inputs = {name: m.requires_grad_() for name, m in make(1, 5, 2, 1, 8).items()}
    (grad,) = torch.autograd.grad(kernels.attention(**inputs).square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), inputs["q"])


def pages(key_lengths, dtype, page=16, Hkv=2, Dh=24):
    """Shuffled pages; what no sequence owns is nan."""
    counts = [-(-keys // page) for keys in key_lengths]
    order = torch.randperm(sum(counts) + 2)
    table = torch.zeros(len(counts), max(counts) + 1, dtype=torch.int64)
    keys, values = (torch.full((sum(counts) + 2, page, Hkv, Dh), torch.nan, dtype=dtype) for _ in range(2))
    for row, (length, count) in enumerate(zip(key_lengths, counts, strict=True)):
        table[row, :count], order = order[:count], order[count:]
        for pool in (keys, values):
            filled = torch.full((count * page, Hkv, Dh), torch.nan, dtype=dtype)
            filled[:length] = torch.randn(length, Hkv, Dh)
            pool[table[row, :count]] = filled.unflatten(0, (count, page))
    return keys, values, table


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("queries", "keys"), [([300], [300]), ([65], [400]), ([1, 40, 0, 7], [90, 40, 5, 333]), ([2], [2])]
)
@torch.inference_mode()
def test_paged_queries(queries, keys, dtype):
    q, cached = torch.randn(sum(queries), 6, 24).to(dtype), pages(keys, dtype)
    got = kernels.paged_attention(q, *cached, queries, keys)
    assert got.dtype == dtype
    wide = (m.double() if m.is_floating_point() else m for m in cached)
    expected = kernels.paged_attention(q.double(), *wide, queries, keys, backend="reference")
    assert_same([got], [expected], TOLERANCE[dtype])


@torch.inference_mode()
def test_pages_in_other_order_give_the_same_bits():
    q = torch.randn(50, 4, 24)
    keys, values, table = pages([200], torch.float32)
    moved = torch.randperm(keys.shape[0])
    where = torch.argsort(moved)
    results = [
        kernels.paged_attention(q, keys, values, table, [50], [200]),
        kernels.paged_attention(q, keys[moved], values[moved], where[table], [50], [200]),
    ]
    assert torch.equal(*results)


@torch.inference_mode()
def test_pages_that_do_not_exist_are_an_error():
    keys, values, table = pages([40], torch.float32)
    table[0, 1] = 999
    with pytest.raises((IndexError, RuntimeError)):
        kernels.paged_attention(torch.randn(5, 4, 24), keys, values, table, [5], [40])


@pytest.mark.parametrize("ids", [None, documents(100, 30, 70).unsqueeze(0)])
def test_values_that_a_token_does_not_see_change_no_bit(ids):
    """Neither those of later tokens nor those of another document, however large."""
    inputs = make(1, 200, 4, 2, 16)
    changed = {name: m.clone() for name, m in inputs.items()}
    changed["v"][:, 100] = 1e30
    before, after = (kernels.attention(**m, document_ids=ids) for m in (inputs, changed))
    assert torch.equal(before[:, :100], after[:, :100])
    assert ids is None or torch.equal(before[:, 130:], after[:, 130:])
    assert not torch.equal(before[:, 100], after[:, 100])


def test_gradients_do_not_come_from_tokens_that_do_not_see():
    inputs, ids = make(1, 200, 4, 2, 16), documents(100, 30, 70).unsqueeze(0)
    inputs["v"][:, 100] = 1e30
    dout = torch.randn(1, 200, 4, 16)
    leaves = [m.requires_grad_() for m in inputs.values()]
    whole = torch.autograd.grad(kernels.attention(**inputs, document_ids=ids), leaves, dout)
    first = {name: m.detach()[:, :100].clone().requires_grad_() for name, m in inputs.items()}
    own = torch.autograd.grad(kernels.attention(**first), list(first.values()), dout[:, :100])
    for got, expected in zip(whole, own, strict=True):
        torch.testing.assert_close(got[:, :100], expected)
