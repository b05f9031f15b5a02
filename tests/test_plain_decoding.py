"""Decoding: greedy equals the arg-max of full forwards; sampling keeps to the nucleus and to the seed."""

from __future__ import annotations

import torch

from .plain_decoding import generate, sample


def test_greedy_equals_repeated_full_forwards(small_model):
    tokens = torch.tensor([[5, 17, 3, 60], [9, 9, 9, 1]])
    grown = tokens
    for _ in range(12):
        grown = torch.cat([grown, small_model(grown)[:, -1:].argmax(-1)], dim=1)
    assert generate(small_model, tokens, 12, temperature=0) == grown[:, 4:].tolist()


def test_a_row_ends_at_its_stop_token_and_others_go_on(small_model):
    tokens = torch.tensor([[5, 17, 3, 60], [9, 9, 9, 1]])
    free = generate(small_model, tokens, 12, temperature=0)
    stop = free[0][3]
    stopped = generate(small_model, tokens, 12, temperature=0, stop_ids=(stop,))
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)


def test_sampling_follows_the_seed(small_model):
    tokens = torch.tensor([[5, 17, 3, 60]])
    first, again, other = (generate(small_model, tokens, 20, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    drawn = sample(logits, 1.0, 0.7, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4) / 2000
    assert counts[2:].sum() == 0
    assert abs(counts[0].item() - 0.625) < 0.05
