"""One flat pass over many sequences equals each sequence alone."""

import random

import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool

PAGE = 4


@pytest.fixture(scope="module")
def model():
    cfg = ModelConfig(
        pattern="M*ME-", vocab_size=64, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, mamba_n_heads=4,
        mamba_head_dim=8, d_state=16, n_groups=2, chunk_size=8, n_experts=4, top_k=2, d_expert=16, d_shared=16, d_ff=32,
    )  # fmt: skip
    return LM(cfg).init_weights(seed=3).to_dtype(torch.float32).eval()


@pytest.fixture
def pool(model):
    pool = StatePool(model.cfg, n_slots=24, n_pages=400, page_size=PAGE)
    for block in pool.blocks:
        for tensor in (getattr(block, name, None) for name in ("conv", "ssm", "keys", "values")):
            if tensor is not None:
                tensor.fill_(torch.nan)  # whatever was there before must not show
    return pool


class Sequence:
    def __init__(self, pool, tokens, slot, pages):
        self.tokens, self.slot, self.pages, self.done = tokens, slot, pages, 0
        pool.clear_slot(slot)

    def span(self, length, saves=()):
        return Span(length, self.slot, self.done, self.pages, saves)


def make(pool, lengths, rng):
    pages = list(range(pool.n_pages))
    rng.shuffle(pages)
    slots = list(range(pool.n_slots))
    rng.shuffle(slots)
    sequences = []
    for length in lengths:
        tokens = torch.tensor([rng.randrange(64) for _ in range(length)])
        mine = [pages.pop() for _ in range(-(-length // PAGE))]
        sequences.append(Sequence(pool, tokens, slots.pop(), mine))
    return sequences


@torch.inference_mode()
def advance(model, pool, parts):
    """parts: (sequence, length, saves). Logits of each."""
    plan = Plan([sequence.span(length, saves) for sequence, length, saves in parts], PAGE)
    row = torch.cat([s.tokens[s.done : s.done + length] for s, length, _ in parts])
    logits = model(row.unsqueeze(0), state=pool.state(plan))[0].split(plan.query_lengths)
    for sequence, length, _ in parts:
        sequence.done += length
    return logits


@torch.inference_mode()
def alone(model, tokens):
    return model(tokens.unsqueeze(0))[0]


@pytest.mark.parametrize("seed", range(6))
def test_any_division_into_passes_equals_one_pass_alone(model, pool, seed):
    rng = random.Random(seed)
    lengths = [rng.choice([1, 2, 9, 40, 170, 300]) for _ in range(rng.randrange(1, 12))]
    sequences = make(pool, lengths, rng)
    got = [[] for _ in sequences]
    while left := [i for i, s in enumerate(sequences) if s.done < len(s.tokens)]:
        chosen = rng.sample(left, rng.randrange(1, len(left) + 1))
        parts = []
        for i in chosen:
            room = len(sequences[i].tokens) - sequences[i].done
            parts.append((sequences[i], min(room, rng.choice([1, 1, 3, 20, 150, 300])), ()))
        for i, logits in zip(chosen, advance(model, pool, parts), strict=True):
            got[i].append(logits)
    for sequence, parts in zip(sequences, got, strict=True):
        torch.testing.assert_close(torch.cat(parts), alone(model, sequence.tokens), rtol=1e-4, atol=1e-4)


def test_saved_states_continue_where_they_were_kept(model, pool):
    rng = random.Random(1)
    first, second, third = make(pool, [40, 40, 5], rng)
    keep = [slot for slot in range(pool.n_slots) if slot not in (first.slot, second.slot, third.slot)][:3]
    advance(model, pool, [(first, 33, ((7, keep[0]), (32, keep[1]), (33, keep[2]))), (third, 5, ())])
    for slot, length in zip(keep, (7, 32, 33), strict=True):
        pool.copy_slot(slot, second.slot)
        whole = length // PAGE
        second.tokens = torch.cat([first.tokens[:length], torch.arange(40 - length)])
        second.pages, second.done = first.pages[:whole] + second.pages[whole:], length
        pool.copy_page(first.pages[whole], second.pages[whole], length % PAGE)
        (logits,) = advance(model, pool, [(second, 40 - length, ())])
        torch.testing.assert_close(logits, alone(model, second.tokens)[length:], rtol=1e-4, atol=1e-4)


def test_many_single_tokens_in_scattered_slots(model, pool):
    rng = random.Random(2)
    sequences = make(pool, [6] * 12, rng)
    advance(model, pool, [(s, 4, ()) for s in sequences])
    sequences.sort(key=lambda s: s.tokens[0].item())
    one = advance(model, pool, [(s, 1, ()) for s in sequences])
    in_place = sorted(sequences, key=lambda s: s.slot)
    advance(model, pool, [(s, 1, ()) for s in in_place])
    for sequence, logits in zip(sequences, one, strict=True):
        torch.testing.assert_close(logits, alone(model, sequence.tokens)[4:5], rtol=1e-4, atol=1e-4)
