"""A row computed slice by slice, with a boundary and a context that hand over what lies before, is the whole row."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from nano3.kernels import linear_cross_entropy

from nano3.model.forward_pass import Edge, Keys
from nano3.model.lm import LM

WAYS = {"whole": (0, False), "recomputed": (0, True), "in pieces": (16, True), "rows together": (100, True)}
PACKINGS = {
    "one document": None,
    "documents over the borders": [[5, 31, 70], [46, 48]],
    "documents that begin at the borders": [[40, 65], [39, 40, 41, 66]],
    "an id that comes again behind a border": [[36, 40], [20, 40]],
}


class HandOver:
    """Boundary and context of a slice: what the slice before left, in this process."""

    def __init__(self, before: HandOver | None, previous_ids: torch.Tensor | None) -> None:
        self.before, self.previous_ids = before, previous_ids
        self.edges: dict[int, Edge] = {}
        self.seen: dict[int, Keys] = {}

    def enter(self, block, own):
        return None if self.before is None else self.before.edges[block]

    def leave(self, block, end):
        self.edges[block] = end

    def gather(self, block, own):
        seen = own
        if self.before is not None:
            keys, values, ids = self.before.seen[block]
            both = None if ids is None else torch.cat([ids, own.document_ids], dim=1)
            seen = Keys(torch.cat([keys, own.keys], dim=1), torch.cat([values, own.values], dim=1), both)
        self.seen[block] = seen
        return seen


class Summaries(HandOver):
    """As slices that are computed at the same time do it: from tails and summaries, before any start is known."""

    def enter(self, block, own):
        start = None if self.before is None else self.before.edges[block]
        state, decay = own.summary(None if start is None else start.conv)
        self.edges[block] = Edge(own.tail(), state if start is None else decay[..., None, None] * start.ssm + state)
        return start

    def leave(self, block, end):
        torch.testing.assert_close(self.edges[block], end, rtol=1e-8, atol=1e-11)


@pytest.fixture
def model(small_config):
    model = LM(small_config).init_weights(1).double().train()
    model.compute_dtype = torch.float64
    return model


def draw(packing, rows=2, T=90):
    tokens = torch.randint(0, 97, (rows, T), generator=torch.Generator().manual_seed(0))
    if PACKINGS[packing] is None:
        return tokens, None
    ids = torch.zeros(rows, T, dtype=torch.int32)
    for row, starts in enumerate(PACKINGS[packing][:rows]):
        for number, start in enumerate(starts):
            ids[row, start:] = (number + 1) % 2 if "again" in packing else number + 1
    return tokens, ids


def train_once(model, tokens, ids, cuts, way, kind=HandOver):
    """Outputs, loads and gradients, in slices of these lengths."""
    model.sequence_chunk, model.checkpoint_activations = WAYS[way]
    model.zero_grad()
    outputs, loads, before, start = [], 0, None, 0
    for length in cuts:
        part = slice(start, start + length)
        previous = ids[:, start - 1] if ids is not None and start else None
        here = kind(before, previous) if len(cuts) > 1 else None
        own = None if ids is None else ids[:, part]
        hidden = model.hidden(tokens[:, part], own, boundary=here, context=here)
        outputs.append(hidden.x)
        loads, before, start = loads + hidden.loads, here, start + length
    x = torch.cat(outputs, dim=1)
    linear_cross_entropy(x.flatten(0, 1), model.lm_head.weight, tokens.roll(-1, 1).flatten()).backward()
    return x.detach(), loads, {name: p.grad.clone() for name, p in model.named_parameters()}


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-10)
    assert torch.equal(found[1], expected[1])
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [HandOver, Summaries])
def test_slices_are_the_whole_row_forward_and_backward(model, packing, way, kind):
    tokens, ids = draw(packing)
    same(train_once(model, tokens, ids, [40, 26, 24], way, kind), train_once(model, tokens, ids, [90], "whole"))


@pytest.mark.parametrize("way", ["whole", "in pieces"])
def test_a_later_slice_changes_with_its_own_document_alone(model, way):
    tokens, ids = draw("documents over the borders", rows=1)
    other = tokens.clone()
    other[0, 3] = (other[0, 3] + 1) % 97
    one, two = (train_once(model, t, ids, [40, 50], way)[0] for t in (tokens, other))
    assert (one[0, :5] - two[0, :5]).abs().max() > 1e-9
    torch.testing.assert_close(one[0, 5:], two[0, 5:], rtol=0, atol=1e-12)
    other = tokens.clone()
    other[0, 33] = (other[0, 33] + 1) % 97
    two = train_once(model, other, ids, [40, 50], way)[0]
    assert (one[0, 69] - two[0, 69]).abs().max() > 1e-9
    torch.testing.assert_close(one[0, 70:], two[0, 70:], rtol=0, atol=1e-12)


class Counting(HandOver):
    """Counts the questions and answers of each block."""

    def __init__(self, before, previous_ids):
        super().__init__(before, previous_ids)
        self.calls = Counter()

    def enter(self, block, own):
        self.calls["enter", block] += 1
        return super().enter(block, own)

    def leave(self, block, end):
        self.calls["leave", block] += 1
        super().leave(block, end)

    def gather(self, block, own):
        self.calls["gather", block] += 1
        return super().gather(block, own)


@pytest.mark.parametrize("way", WAYS)
def test_each_block_asks_once_whatever_is_computed_again(model, way):
    tokens, ids = draw("documents over the borders")
    model.sequence_chunk, model.checkpoint_activations = WAYS[way]
    before = Counting(None, None)
    model.hidden(tokens[:, :40], ids[:, :40], boundary=before, context=before)
    here = Counting(before, ids[:, 39])
    model.hidden(tokens[:, 40:], ids[:, 40:], boundary=here, context=here).x.sum().backward()
    asked = {"M": ["enter", "leave"], "*": ["gather"]}
    expected = {(call, i): 1 for i, symbol in enumerate(model.cfg.pattern) for call in asked.get(symbol, ())}
    assert here.calls == before.calls == expected


def test_a_slice_too_short_for_the_convolution_says_so(model):
    tokens, _ = draw("one document")
    with pytest.raises(ValueError, match="a slice of 2 tokens is shorter than the 3 that the next"):
        train_once(model, tokens, None, [2, 88], "whole", Summaries)


def test_state_and_a_boundary_are_refused_together(model):
    here = HandOver(None, None)
    with pytest.raises(ValueError, match="state or boundary and context, not both"):
        model.hidden(torch.ones(1, 4, dtype=torch.int64), state=model.new_state(1), boundary=here)
