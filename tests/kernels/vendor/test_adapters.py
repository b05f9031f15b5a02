"""Calls to causal-conv1d and flash-attn, whose kernels need a GPU: plain functions of the same layouts stand in."""

import inspect

import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F
from nano3.kernels.eager import varlen
from nano3.kernels.vendor import causal_conv1d, flash_attn
from nano3.kernels.vendor.package import Functions

from nano3 import kernels

IDS = torch.tensor([[4] * 5 + [9] + [4] * 7, [0] * 13])


def plain_conv(x, weight, bias, seq_idx=None, initial_states=None, activation=None):
    """causal_conv1d_fn: x (B, C, T), channels last in memory with documents or a state."""
    assert x.stride(1) == 1
    assert all(stride % 8 == 0 for stride in (x.stride(0), x.stride(2)))
    assert activation == "silu"
    width = weight.shape[1]
    past = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    windows = torch.cat([past, x], 2).unfold(2, width, 1)  # (B, C, T, W)
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        same = F.pad(seq_idx, (width - 1, 0), value=-1).unfold(1, width, 1) == seq_idx.unsqueeze(2)
        windows = windows * same.unsqueeze(1)
    return F.silu((windows * weight[:, None]).sum(-1) + bias[:, None])


def plain_attention(q, k, v, causal):
    assert causal
    mask = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()  # aligned at the last keys
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def plain_varlen(q, k, v, ends_q, ends_k, longest_q, longest_k, causal):
    """flash_attn_varlen_func: (tokens, heads, Dh) and where each sequence ends."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    lengths = ends_q.diff().tolist()
    assert longest_q == longest_k == max(lengths)
    parts = zip(*(m.split(lengths) for m in (q, k, v)), strict=True)
    return torch.cat([plain_attention(*(m[None] for m in part), causal=causal)[0] for part in parts])


def varlen_with_groups(*arguments, window_size=(-1, -1), enable_gqa=False):
    """torch.nn.attention.varlen.varlen_attn; its windows without a key behind the query are the causal ones."""
    assert enable_gqa == (arguments[0].shape[1] != arguments[1].shape[1])
    return plain_varlen(*arguments, causal=window_size == (-1, 0))


def varlen_with_windows(*arguments, window_size=(-1, -1)):
    assert arguments[0].shape[1] == arguments[1].shape[1]
    return plain_varlen(*arguments, causal=window_size == (-1, 0))


def varlen_with_is_causal(*arguments, is_causal=False):
    assert arguments[0].shape[1] == arguments[1].shape[1]
    return plain_varlen(*arguments, causal=is_causal)


def plain_pages(q, key_pages, value_pages, cache_seqlens, block_table, causal):
    """flash_attn_with_kvcache: q (B, T, heads, Dh)."""
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    rows = []
    for row, count in enumerate(cache_seqlens.tolist()):
        k, v = (m[block_table[row]].flatten(0, 1)[None, :count] for m in (key_pages, value_pages))
        rows.append(plain_attention(q[row, None], k, v, causal))
    return torch.cat(rows)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    conv = Functions({"causal_conv1d_fn": plain_conv}, None)
    attention = {"flash_attn_func": plain_attention, "flash_attn_varlen_func": plain_varlen}
    attention["flash_attn_with_kvcache"] = plain_pages
    monkeypatch.setattr(causal_conv1d, "package", lambda: conv)
    monkeypatch.setattr(flash_attn, "package", lambda: Functions(attention, None))


@pytest.mark.parametrize("documents", [None, IDS])
@pytest.mark.parametrize("state", [False, True])
def test_the_convolution_is_the_references(documents, state):
    packed = torch.randn(2, 13, 40)
    x, weight, bias = packed[..., 8:24], torch.randn(16, 4), torch.randn(16)
    options = {"document_ids": documents, "initial_state": torch.randn(2, 16, 3) if state else None}
    results = []
    for run in (causal_conv1d.FUNCTIONS["causal_conv1d"], kernels.causal_conv1d):
        leaves = [m.clone().requires_grad_() for m in (packed, weight, bias)]
        y, final = run(leaves[0][..., 8:24], *leaves[1:], **options)
        total = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + final.square().sum()
        results.append([y, final, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*results)
    assert x.shape == y.shape


def test_what_causal_conv1d_does_not_take_goes_to_pytorch():
    x, weight, bias = torch.randn(1, 5, 12), torch.randn(12, 4), torch.randn(12)  # 12 channels: no multiple of 8
    got = causal_conv1d.FUNCTIONS["causal_conv1d"](x, weight, bias)
    torch.testing.assert_close(got, kernels.causal_conv1d(x, weight, bias))


def heads(batch, queries, keys, *, kv=2):
    return [torch.randn(batch, n, h, 8).half() for n, h in ((queries, 4), (keys, kv), (keys, kv))]


@pytest.mark.parametrize(("queries", "documents"), [(13, None), (13, IDS), (4, None), (4, IDS)])
def test_attention_is_the_references(queries, documents):
    q, k, v = heads(2, queries, 13)
    got = flash_attn.FUNCTIONS["attention"](q, k, v, document_ids=documents)
    expected = kernels.attention(q.float(), k.float(), v.float(), document_ids=documents, backend="reference")
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("size", [256, 64])
def test_attention_over_pages_is_the_references(size):
    keys, values = torch.randn(2, 6, size, 2, 8).half()
    arguments = (keys, values, torch.tensor([[3, 1], [5, 0]]), [2, 2], [size + 9, 20])
    q = torch.randn(4, 4, 8).half()
    got = flash_attn.FUNCTIONS["paged_attention"](q, *arguments)
    expected = kernels.paged_attention(q, *arguments, backend="reference")
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-3)


def test_pytorchs_flash_attention_has_a_signature_that_is_known():
    names = inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters
    assert "window_size" in names or "is_causal" in names


@pytest.mark.parametrize("kv", [2, 4])
@pytest.mark.parametrize("release", [varlen_with_groups, varlen_with_windows, varlen_with_is_causal])
def test_packed_documents_go_through_one_call_of_pytorchs_flash_attention(monkeypatch, release, kv):
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", release)
    q, k, v = heads(2, 13, 13, kv=kv)
    got = varlen.attend_packed(q, k, v, IDS)
    expected = kernels.attention(q.float(), k.float(), v.float(), document_ids=IDS, backend="reference")
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=3e-3)


def test_bounds_are_found_once_for_a_batch_and_anew_after_a_change():
    ids = IDS.clone()
    found = varlen.bounds(ids)
    assert (found.ends.tolist(), found.longest) == ([0, 5, 6, 13, 26], 13)
    assert varlen.bounds(ids) is found
    assert varlen.bounds(ids.clone()) is not found
    ids[1, 3:] = 1
    assert varlen.bounds(ids).ends.tolist() == [0, 5, 6, 13, 16, 26]
    with torch.inference_mode():
        fresh = IDS.clone()
        varlen.bounds(fresh)
        fresh[0] = 7
        assert varlen.bounds(fresh).ends.tolist() == [0, 13, 26]
