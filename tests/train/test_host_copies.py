"""Training asks no device for a number inside a micro-batch: what the host has to know, it knew before it sent it."""

import dataclasses
import gc

import pytest
import torch
from nano3.kernels import host_copies
from nano3.kernels.eager import varlen
from nano3.kernels.host_copies import known, places, remember

from nano3.config.model import ModelConfig
from nano3.data.tokens.batch import Batch
from nano3.model.lm import LM
from nano3.parallel.tensor import SharedTokens
from nano3.rl.batch import PolicyBatch
from nano3.rl.grpo import GRPOLoss, Objective
from nano3.train.feed import to_device
from nano3.train.loss import NextTokenLoss, Scale
from tests.model.steps import SIZES

pytestmark = pytest.mark.any_isa

META = torch.device("meta")
"""Nothing has a value there, so whatever would make the host wait for a GPU fails."""
T = 320
"""Long enough that attention in float32 looks at where documents begin."""


def batch_of(kind, T=T):
    g = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(60, (2, T), generator=g) for _ in range(2))
    targets[torch.rand(2, T, generator=g) < 0.3] = -100
    ids = torch.stack([torch.arange(T) // 70, torch.arange(T) // (T - 20)]).int()
    valid = torch.arange(T) < torch.tensor([[T], [T - 20]])
    given = {"tokens": tokens, "targets": targets.masked_fill(~valid, -100), "document_ids": ids, "valid": valid}
    if kind == "pretrain":
        return Batch(**given, documents=[])
    routing = torch.rand(1, 2, T, SIZES["n_experts"], generator=g).topk(2).indices
    sampled, advantages, reference = (torch.randn(2, T, generator=g) for _ in range(3))
    return PolicyBatch(**given, sampled=sampled, advantages=advantages, routing=routing, reference=reference,
                       ids_limit=60)  # fmt: skip


LOSSES = {"pretrain": lambda: NextTokenLoss(1e-3, "seq_aux_loss"), "rl": lambda: GRPOLoss(Objective(kl_coef=0.1))}


def model_on(device, **settings):
    cfg = ModelConfig(pattern="M*ME-", **SIZES | {"chunk_size": 64})
    with torch.device(device):
        model = LM(cfg).to_dtype(torch.float32, torch.bfloat16).train()
    for name, value in settings.items():
        setattr(model, name, value)
    return model


def micro_batch(model, kind, batch):
    loss = LOSSES[kind]()
    parts = loss(model, batch, Scale(100, 1))
    parts.total.backward()
    return parts


@pytest.mark.parametrize("settings", [{}, {"checkpoint_activations": True}, {"sequence_chunk": 64}], ids=str)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_micro_batch_asks_the_device_for_nothing(kind, settings):
    model = model_on(META, **settings)
    micro_batch(model, kind, to_device(batch_of(kind), META))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("field", ["targets", "document_ids", "valid"])
def test_that_would_be_seen(field, monkeypatch):
    """A device that alone knows one of them is asked for it."""
    batch = to_device(batch_of("pretrain"), META)
    unknown = dataclasses.replace(batch, **{field: torch.empty_like(getattr(batch, field))})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        micro_batch(model_on(META), "pretrain", unknown)


@pytest.mark.parametrize("host", [torch.arange(24).view(4, 6), torch.arange(48).view(8, 6)[4:]], ids=["whole", "part"])
def test_views_and_slices_are_known_too(host):
    there = host.to(META)
    assert known(there) is None
    remember(there, host)
    for view in (lambda x: x, lambda x: x[1:3, 2:5], lambda x: x.flatten(), lambda x: x[2], lambda x: x.t()):
        assert torch.equal(known(view(there)), view(host))
    assert known(there + 1) is None
    assert places(there.flatten(), lambda ids: ids >= host.max() - 2).shape == (3,)
    assert known(host) is host


def test_a_rank_of_several_that_share_one_row_knows_its_own_part():
    """A part of a single row is dense where it lies, inside the whole one."""
    shared = SharedTokens.__new__(SharedTokens)  # without the processes
    shared.slices, shared.size, shared.rank, shared.each = None, 4, 2, 1
    whole = batch_of("pretrain")
    row = {name: getattr(whole, name)[1:] for name in ("tokens", "targets", "document_ids", "valid")}
    batch = shared.cut(Batch(**row, documents=[]))
    there = to_device(batch, META)
    for name in ("targets", "document_ids", "valid", "whole_ids"):
        assert torch.equal(known(getattr(there, name)), getattr(batch, name)), name


def test_numbers_that_were_written_over_are_not_known():
    there = torch.arange(6).to(META)
    remember(there, torch.arange(6))
    there[2:].zero_()
    assert known(there) is None


def test_copies_go_with_their_tensor():
    there = torch.arange(6).to(META)
    remember(there, torch.arange(6))
    before = len(host_copies._COPIES)
    del there
    gc.collect()
    assert len(host_copies._COPIES) == before - 1


def test_bounds_of_documents_come_from_the_host():
    host = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.int32)
    there = host.to(META)
    remember(there, host)
    found = varlen.bounds(there)
    assert (found.longest, found.ends.shape, found.ends.device) == (4, (5,), META)
    assert varlen.bounds(host).ends.tolist() == [0, 2, 5, 6, 10]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("settings", [{}, {"checkpoint_activations": True}, {"sequence_chunk": 64}], ids=str)
def test_the_host_does_not_wait_inside_a_micro_batch(kind, settings):
    device = torch.device("cuda")
    model = model_on("cpu", **settings).init_weights(0).to(device)
    batch = to_device(batch_of(kind), device)
    micro_batch(model, kind, batch)  # kernels are compiled, libraries prepare
    batch = to_device(batch_of(kind), device)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = micro_batch(model, kind, batch)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.isfinite(parts.total)
