import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from nano3.config.schema import HeldoutConfig
from nano3.model.lm import LM
from nano3.train.heldout import Heldout, Spread, evaluate
from nano3.train.world import World


def test_bits_per_byte_follow_from_the_summed_loss(tiny):
    model, source = LM(tiny.MODEL).init_weights(0), tiny.TinySource(5)
    score = evaluate(model, source, 100, micro_batch=2, world=World())
    everything = source.batch(0, 5)
    logits = model(everything.tokens, everything.document_ids)
    nll = cross_entropy(logits.flatten(0, 1), everything.targets.flatten(), reduction="sum").item()
    assert score.targets == everything.n_targets
    assert score.bytes == 3 * everything.n_targets
    assert score.loss == pytest.approx(nll / score.targets, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / score.bytes, rel=1e-5)


def test_evaluation_scores_what_was_asked_and_leaves_the_model_in_training_mode(tiny):
    model, source = LM(tiny.MODEL).init_weights(0).train(), tiny.TinySource(8)
    score = evaluate(model, source, 3, micro_batch=2, world=World())
    assert score.targets == source.batch(0, 3).n_targets
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_score_on_the_way_is_of_sequences_from_all_over_the_text_whatever_the_batch(tiny):
    source = tiny.TinySource(10)
    sample = Heldout(HeldoutConfig(tokens=4 * tiny.SEQ_LEN), {tiny.SEQ_LEN: source}, 64).text(tiny.SEQ_LEN, False)
    rows = [source.batch(place, 1).tokens for place in (0, 2, 5, 7)]
    assert torch.equal(sample.batch(0, 4).tokens, torch.cat(rows))
    assert sample.bytes_of(0, 4) == sum(source.bytes_of(place, 1) for place in (0, 2, 5, 7))
    model = LM(tiny.MODEL).init_weights(0)
    one, three = (evaluate(model, sample, 4, micro_batch=size, world=World()) for size in (1, 3))
    assert (one.targets, one.bytes) == (three.targets, three.bytes)
    assert one.loss == pytest.approx(three.loss, rel=1e-5)


def test_the_last_score_is_of_the_text_from_its_start_since_compressors_are_given_that(tiny):
    source = tiny.TinySource(10)
    heldout = Heldout(HeldoutConfig(tokens=16, final_tokens=3 * tiny.SEQ_LEN), {tiny.SEQ_LEN: source}, 64)
    assert heldout.text(tiny.SEQ_LEN, True) is source
    assert len(Spread(source, 99)) == 10


def test_padded_sequences_and_full_ones_are_scored_in_one_batch(tiny):
    class Padded(tiny.TinySource):
        """Every second sequence ends with padding."""

        def batch(self, start, count):
            batch = super().batch(start, count)
            if start % 2 == 0:
                return batch
            valid = torch.ones_like(batch.tokens, dtype=torch.bool)
            valid[:, -2:] = False
            return dataclasses.replace(batch, valid=valid)

    for first in (0, 1):  # whether the full one or the padded one comes first
        sample = Spread(Padded(4), 4).batch(first, 3)
        assert sample.valid.tolist() == [
            [(first + i) % 2 == 0 or t < tiny.SEQ_LEN - 2 for t in range(tiny.SEQ_LEN)] for i in range(3)
        ]
    assert Spread(tiny.TinySource(4), 4).batch(0, 4).valid is None
