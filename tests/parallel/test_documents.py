"""Slices of sequences that are cut anywhere in documents, on ranks that are threads of this process: their one graph of
gradients spans all of them, so that hundreds of arrangements are quick to compare with whole sequences."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.parallel.context import Neighbours, SharedSequences
from nano3.parallel.sharing import around
from nano3.train.heldout import to_device

from ..train.tiny_run import TinyBatch

T, VOCAB = 48, 128
SMALL = ModelConfig(
    pattern="ME*M", vocab_size=VOCAB, d_model=12, init_std=0.3, n_heads=2, n_kv_heads=1, head_dim=6, mamba_n_heads=4,
    mamba_head_dim=4, d_state=6, n_groups=2, chunk_size=5, n_experts=4, top_k=2, d_expert=6, d_shared=6,
)  # fmt: skip
WAYS = {"whole": (0, False), "recomputed": (0, True), "in pieces": (5, True)}


class Ranks:
    """A group of ranks that are threads: each gives its part, and all are given all parts."""

    def __init__(self, size: int) -> None:
        self.size, self.parts = size, [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=120)

    def all(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self.parts[rank] = x
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts


class Shared(SharedSequences):
    """With the collectives of threads in the place of those of processes."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks = ranks
        self.arrange(rank, ranks.size)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return self.in_order(torch.stack(self._ranks.all(self.rank, x)))

    def start_states(self, state: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        # The graph of all ranks in one has no collectives backwards, as those of processes have.
        states, decays = self.gather(state), self.gather(decay)
        return self.choose(torch.stack(starts_of(states, decays)))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._ranks.all(self.rank, values)).sum(0)


def the_model(way: str) -> LM:
    model = LM(SMALL).init_weights(1).double().train()
    model.compute_dtype = torch.float64
    model.sequence_chunk, model.checkpoint_activations = WAYS[way]
    return model


def starts_of(states: torch.Tensor, decays: torch.Tensor) -> list[torch.Tensor]:
    """The states before all slices (count, B, H, P, N), by the recurrence."""
    starts = [torch.zeros_like(states[0])]
    for state, decay in zip(states[:-1], decays, strict=False):
        starts.append(state + decay[..., None, None] * starts[-1])
    return starts


class Given(SharedSequences):
    """What the other processes of `size` have is known: collectives give it."""

    def __init__(self, rank: int, size: int, parts: list[torch.Tensor]) -> None:
        self.parts = parts
        self.arrange(rank, size)

    def collect(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.parts.pop(0)
        assert torch.equal(self.choose(whole), x)
        return whole


@pytest.mark.parametrize("size", [2, 4])
def test_the_states_before_own_slices_and_their_gradients_are_those_of_the_recurrence(size, monkeypatch):
    monkeypatch.setattr("nano3.parallel.context.ARRIVING", 2 * size * 2 * 5 * 3 * 4 * 8)  # of two rows of three
    generator = torch.Generator().manual_seed(size)
    states = torch.randn(2 * size, 3, 5, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    decays = torch.rand(2 * size, 3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    starts = torch.stack(starts_of(states, decays))
    weights = torch.randn(starts.shape, dtype=torch.float64, generator=generator)
    of_states, of_decays = torch.autograd.grad((starts * weights).sum(), (states, decays))
    for rank in range(size):
        rows = (slice(0, 2), slice(2, 3))
        shared = Given(rank, size, [decays.detach(), *(states.detach()[:, few] for few in rows)])
        state, decay = (shared.choose(whole).detach().requires_grad_() for whole in (states, decays))
        found = shared.start_states(state, decay)
        torch.testing.assert_close(found, shared.choose(starts), rtol=1e-12, atol=1e-12)
        shared.parts = [weights[:, few] for few in rows]
        found.backward(shared.choose(weights))
        torch.testing.assert_close(state.grad, shared.choose(of_states), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(decay.grad, shared.choose(of_decays), rtol=1e-12, atol=1e-12)


def batch_of(starts: list[set[int]], tokens: torch.Tensor | None = None) -> TinyBatch:
    """A row for each set of places where documents begin."""
    ids = torch.zeros(len(starts), T, dtype=torch.int32)
    for row, places in enumerate(starts):
        for place in places:
            ids[row, place:] += 1
    if tokens is None:
        tokens = torch.randint(VOCAB, (len(starts), T), generator=torch.Generator().manual_seed(0))
    return TinyBatch(tokens, tokens.roll(-1, 1), ids, [])


def outputs_of(model: LM, batch: TinyBatch, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output (B, T, D), loads, and the balance loss of each row alone and of all, on `size` ranks."""
    if size == 1:
        hidden = model.hidden(batch.tokens, batch.document_ids)
        return hidden.x, hidden.loads, hidden.balance_loss + 2 * hidden.sequence_balance_loss
    ranks = Ranks(size)

    def run(rank: int):
        shared = Shared(ranks, rank)
        own = to_device(shared.cut(batch), torch.device("cpu"))
        hidden = model.hidden(own.tokens, own.document_ids, **around(own, shared), slices=shared)
        balance = hidden.balance_loss + 2 * hidden.sequence_balance_loss
        return shared, hidden.x.unflatten(0, (shared.each, -1)), hidden.loads, balance

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(run, range(size)))
    slices = {i: x[k] for shared, x, _, _ in found for k, i in enumerate(shared.own)}
    loads, balances = (torch.stack([rank[k] for rank in found]).sum(0) for k in (2, 3))
    return torch.cat([slices[i] for i in range(len(slices))], dim=1), loads, balances


def gradients_of(model: LM, x: torch.Tensor, balance: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    ((x * weights).sum() + balance).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


BORDERS = [border + near for border in (6, 12, 18, 24, 30, 36, 42) for near in (-3, -2, -1, 0, 1, 2, 3)]
PLACES = st.sets(st.sampled_from(BORDERS) | st.integers(1, T - 1), max_size=10)


@pytest.mark.parametrize(
    ("way", "size"),
    [
        ("whole", 2),
        ("in pieces", 4),
        *(pytest.param(way, size, marks=pytest.mark.slow) for way, size in (("whole", 4), ("in pieces", 2))),
        *(pytest.param("recomputed", size, marks=pytest.mark.slow) for size in (2, 4)),
    ],
)
@given(starts=st.lists(PLACES, min_size=1, max_size=2))
@example(starts=[set()])
@example(starts=[{11, 12, 13, 14}, {24}])  # documents of one token around a border, and one that begins there
@example(starts=[{5}, {1, 46, 47}])  # documents longer than two slices
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_are_the_whole_sequences_wherever_documents_begin(way, size, starts):
    model, batch = the_model(way), batch_of(starts)
    x, loads, balance = outputs_of(model, batch, size)
    found = gradients_of(model, x, balance)
    model.sequence_chunk, model.checkpoint_activations = WAYS["whole"]
    expected, whole_loads, whole_balance = outputs_of(model, batch, 1)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(balance, whole_balance, rtol=1e-11, atol=0)
    assert torch.equal(loads, whole_loads)
    for name, gradient in gradients_of(model, expected, whole_balance).items():
        assert (found[name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


def changes_elsewhere(changed: int, apart: bool) -> tuple[float, float]:
    """Largest changes of outputs and gradients, of the other documents and of the one that gets other tokens; `apart`:
    that these are documents, and not one. Gradients by position: each token is one of its own, with its own row of the
    embedding."""
    model, starts = the_model("whole"), [0, 11, 12, 40, T]
    tokens = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))
    place = slice(starts[changed], starts[changed + 1])
    other = tokens[:T].clone()
    other[place] = tokens[T : 2 * T][place]
    results = []
    for row in (tokens[:T], other):
        batch = batch_of([set(starts[1:-1]) if apart else set()], row.unsqueeze(0))
        x, _, balance = outputs_of(model, batch, 2)
        gradient = gradients_of(model, x, 0 * balance)["embeddings.weight"][row]
        assert gradient.abs().amax(1).min() > 1e-9
        results.append(torch.cat([x[0].detach(), gradient], dim=1))
    change = (results[0] - results[1]).abs().amax(1)
    return torch.cat([change[: place.start], change[place.stop :]]).max().item(), change[place].max().item()


@pytest.mark.parametrize("changed", range(4))
def test_a_document_leaves_the_others_alone(changed):
    """But for rounding: how many tokens an expert gets at a time may decide how a product of its rows is summed."""
    elsewhere, in_place = changes_elsewhere(changed, apart=True)
    in_one_document, _ = changes_elsewhere(changed, apart=False)
    assert elsewhere < 1e-11
    assert in_place > 1e-3
    assert in_one_document > 1e-4


class OwnStates:
    """What a Mamba-2 block says of two slices: of each the last inputs, the state at its end and the decays."""

    def tail(self):
        return torch.zeros(2, 3, 4, requires_grad=True)

    def summary(self, conv):
        return torch.randn(2, 8, 4, 6, requires_grad=True), torch.rand(2, 8, requires_grad=True)


def test_the_backward_pass_keeps_the_states_before_own_slices_alone():
    """And not those of all, which were gathered to find them."""

    class Alike(SharedSequences):
        def __init__(self):
            self.arrange(3, 8)

        def gather(self, x):
            return self.in_order(torch.stack([x] * self.size))

        def collect(self, x):
            return self.gather(x.detach())

    kept, shared = {}, Alike()

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        Neighbours(shared, torch.zeros(1, T, dtype=torch.int32)).enter(0, OwnStates())
    own = 2 * 8 * 4 * 6 * 4  # bytes
    assert own <= sum(storage.nbytes() for storage in kept.values()) < 2 * own
